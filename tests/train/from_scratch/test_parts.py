"""The parts of a model of scenes, each alone: what they learn from is true, and they read as the whole model does."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import segue
from segue import prepare
from segue.data.prompts import SEGMENT_PROMPTS
from segue.files import OLD
from segue.media import open_media
from segue.synth import clip, scene
from segue.synth.backgrounds import BACKGROUNDS
from segue.synth.drawings import KINDS
from segue.synth.wording import LANGUAGES, vocabulary
from segue.train.from_scratch import __main__ as command
from segue.train.from_scratch import masks, parts, sight, words
from segue.train.from_scratch.collage import NAMES, Collages, kept, undrawn
from segue.train.from_scratch.turns import Ask, turns
from segue.types import Message

SIDE = 144


@pytest.fixture(scope="module")
def engine():
    return segue.load("demo", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def drawn():
    return [scene(0, number, split="validation", size=(160, 160)) for number in range(4)]


@pytest.fixture(scope="module")
def drawn_clip():
    return clip(0, 0, split="validation", size=(120, 160))


def chance():
    return np.random.default_rng(3)


def test_a_turn_is_what_a_dialogue_of_its_own_would_be(engine, drawn):
    opening, made = turns(drawn[0], engine.processor, chance(), "en", frames="uniform:4")
    media = open_media(drawn[0].frames[0])
    for turn in (one for one in made if one.ask != Ask.REGION):
        question = engine.processor.tokenizer.decode(turn.ids[1 : turn.answer].tolist(), skip_special_tokens=False)
        message = Message.user(question.split("<|im_end|>")[0], media)
        row = prepare.prepare([message], engine.processor)
        assert np.array_equal(row.ids, [*opening, *turn.ids[: turn.answer]])
    regions = [turn for turn in made if turn.ask == Ask.REGION]
    assert regions and all((turn.ids == engine.processor.visual_id).sum() == len(turn.cells) for turn in regions)


def test_there_is_a_mark_for_every_thing_and_none_where_nothing_is_meant(engine, drawn):
    _, made = turns(drawn[1], engine.processor, chance(), "zh", frames="uniform:4")
    asked = [turn for turn in made if turn.ask == Ask.MASKS]
    assert all((turn.ids == engine.processor.seg_id).sum() == len(turn.things) for turn in asked)
    assert any(not turn.things for turn in asked) and any(turn.things for turn in asked)


def test_people_ask_for_everything_and_for_what_no_scene_has(engine, drawn):
    rng, wordings = chance(), vocabulary("en")
    wanted = {SEGMENT_PROMPTS["image"].replace("{phrase}", one) for one in wordings["plain.all"]}
    meant = {"everything": [], "absent": []}
    for one in drawn:
        for turn in turns(one, engine.processor, rng, "en", frames="uniform:4")[1]:
            question = engine.processor.tokenizer.decode(turn.ids[1 : turn.answer].tolist()).split("<|im_end|>")[0]
            if turn.ask == Ask.MASKS and question.strip() in wanted:
                meant["everything"].append(len(turn.things) / len(one.things))
            if turn.ask == Ask.MASKS and {*question.strip(" .?\n").split()} & {*wordings["absent"]}:
                meant["absent"].append(len(turn.things))
    assert set(meant["everything"]) == {1} and set(meant["absent"]) == {0}
    for language in LANGUAGES:
        spoken = vocabulary(language)
        kinds = {one for kind in KINDS for one in spoken[f"kind.{kind}"]}
        assert not kinds & set(spoken["absent"])


def test_a_scene_that_is_kept_shows_its_things_where_they_are(drawn):
    for one in drawn:
        collage = kept(one, SIDE)
        assert collage.tile.shape == (SIDE, SIDE, 3) and len(collage.masks) == len(one.things)
        shares = collage.masks.reshape(len(one.things), -1).mean(1) / 255
        assert np.allclose(shares, one.visible[:, 0].mean((1, 2)), atol=2e-3)
        assert [NAMES[0][number] for number in collage.things[:, 0]] == [thing.kind for thing in one.things]


def test_a_collage_shows_more_things_and_each_stands_out(drawn):
    scenes = [kept(one, SIDE) for one in drawn]
    maker, rng = Collages(scenes, [1.0] * len(scenes)), chance()
    made = [maker.make(rng) for _ in range(12)]
    assert np.mean([len(one.things) for one in made]) > np.mean([len(one.things) for one in scenes])
    for one in made:
        assert len(one.masks) == len(one.things) == len(one.covers)
        assert (one.masks.astype(int).sum(0) <= 256).all()


def test_what_is_no_drawing_has_nothing_to_tell():
    collage = undrawn(chance(), SIDE)
    labels = sight.labels_of([collage], 9, 18)
    assert (labels.things == -1).all() and (labels.names[..., 0] == len(KINDS)).all()
    assert (labels.names[..., 2] == len(NAMES[2]) + len(BACKGROUNDS)).all() and (labels.edges == -1).all()


def test_tokens_are_told_what_covers_them(drawn):
    collage = kept(drawn[0], SIDE)
    labels = sight.labels_of([collage], 9, 18)
    for number, thing in enumerate(collage.things):
        mine = labels.things[0] == number
        assert mine.any() and (labels.names[0][mine] == torch.from_numpy(thing)).all()
        edges = labels.edges[0][mine][0]
        assert edges[0] <= edges[2] and edges[1] <= edges[3]


def test_the_tower_sees_what_the_whole_model_sees(engine, drawn):
    tiles = sight.pixels_of([kept(one, SIDE).tile for one in drawn])
    mllm = engine.model.mllm
    whole = mllm.project(mllm.tower(tiles)).view(len(drawn), -1, mllm.width)
    alone = sight.visual_features(mllm, sight.tower_states(mllm, tiles))
    assert torch.nn.functional.cosine_similarity(whole, alone, dim=-1).min() > 0.995


def test_turns_are_read_as_the_whole_model_reads_them(engine, drawn):
    known = [parts.know(engine.model, engine.processor, one, chance()) for one in drawn[:2]]
    vocabulary = parts.vocabulary_of(engine.processor)
    batch = words.batch_of(known, vocabulary, chance(), turns=3, longest=64)
    language_model = engine.model.mllm.language_model
    opening = torch.from_numpy(known[0].opening)
    with torch.no_grad():
        states, _ = words.read_turns(language_model, opening, batch, vocabulary.visual)
        for number, turn in np.ndindex(2, 3):
            length = int((batch.labels[number, turn] >= 0).nonzero()[-1]) + 2
            ids = torch.cat([opening, batch.ids[number, turn, :length]])
            if int((ids == vocabulary.visual).sum()) > len(known[0].shown):
                continue
            embedded = language_model.model.embed_tokens(ids)
            embedded[ids == vocabulary.visual] = batch.features[number]
            whole = language_model.model(inputs_embeds=embedded[None]).last_hidden_state[0, len(opening) :]
            alone = states[number, turn, :length]
            assert torch.nn.functional.cosine_similarity(whole, alone, dim=-1).min() > 0.99


def test_a_clip_is_known_by_all_frames_that_the_language_model_is_shown(engine, drawn_clip):
    known = parts.know(engine.model, engine.processor, drawn_clip, chance())
    assert len(known.shown) == len(known.features) == 8 * 81 == (known.opening == engine.processor.visual_id).sum()
    seen = [np.isin(number, known.shown.reshape(8, 81)[frame]) for number in (0, 1) for frame in range(8)]
    there = [~np.isnan(box[0]) for number in (0, 1) for box in drawn_clip.boxes[number]]
    assert seen == there and not len(known.boxes)


def test_what_things_do_in_a_clip_is_told_of_its_later_frames(engine, drawn, drawn_clip):
    known = parts.know(engine.model, engine.processor, drawn_clip, chance())
    corners = drawn_clip.whole_boxes[:, -1] - drawn_clip.whole_boxes[:, 0]
    moves = (corners[:, :2] + corners[:, 2:]) / 2 / min(drawn_clip.size)
    for (across, down), truths in zip(moves, known.does, strict=True):
        said = dict(zip(words.DOES, truths, strict=True))
        assert said["moving"] == -1 or said["moving"] == (np.hypot(across, down) >= 0.12)
        ways = {"moving_left": -across, "moving_right": across, "moving_up": -down, "moving_down": down}
        assert all(said[name] != 1 or along >= 0.12 for name, along in ways.items())
    assert {0, 1} <= set(known.does.flat)
    vocabulary = parts.vocabulary_of(engine.processor)
    batch = words.batch_of([known], vocabulary, chance(), turns=2, longest=28)
    first, later = batch.does[0].chunk(2)
    shows = torch.from_numpy(known.shown[len(known.shown) // 2 :] >= 0)
    assert (first == -1).all() and (later[~shows] == -1).all()
    assert torch.equal(later[shows], torch.from_numpy(known.does[known.shown[len(first) :][shows]]).float())
    aids = words.Aids(engine.model.mllm.width)
    with torch.no_grad():
        assert words.words_losses(engine.model, aids, batch, vocabulary)["does"] > 0
        stills = [parts.know(engine.model, engine.processor, drawn[0], chance())]
        still = words.batch_of(stills, vocabulary, chance(), turns=2, longest=28)
        assert "does" not in words.words_losses(engine.model, aids, still, vocabulary)


def test_a_head_that_looks_away_from_what_is_meant_is_told(engine, drawn):
    known = [parts.know(engine.model, engine.processor, one, chance()) for one in drawn[:2]]
    vocabulary = parts.vocabulary_of(engine.processor)
    batch = words.batch_of(known, vocabulary, chance(), turns=8, longest=46)
    assert len(batch.looks) == len(batch.meant) > len(batch.segs) > 0
    for (row, turn, place), meant in zip(batch.looks.tolist(), batch.meant, strict=True):
        things = batch.segs[(batch.segs[:, :3] == torch.tensor([row, turn, place])).all(1), 3]
        if len(things):  # on a [SEG] it is that thing alone
            assert meant.tolist() == (known[row].shown == int(things)).tolist()
    for (row, _, _), edges in zip(batch.edged.tolist(), batch.edges.numpy() / sight.EDGES, strict=True):
        assert (np.abs(known[row].boxes - edges).max(1) <= 1 / sight.EDGES).any()
    aids = words.Aids(engine.model.mllm.width)
    everywhere = replace(batch, meant=torch.ones_like(batch.meant))
    with torch.no_grad():
        right, anywhere = (
            words.words_losses(engine.model, aids, one, vocabulary)["look"] for one in (batch, everywhere)
        )
    assert 0 < anywhere < right


def test_the_grounder_is_told_of_things_where_they_are(engine, drawn, drawn_clip):
    side = engine.model.grounder.side
    for one in (drawn[0], drawn_clip):
        truth = masks.as_shown(one, side, parts.FRAMES).truth
        assert truth.masks.shape == (len(one.things), len(one.frames), side, side)
        assert truth.prompted == ((0, 2, 4, 7) if one.is_clip else (0,))
        assert all(thing.kind in phrase for thing, phrase in zip(one.things, truth.phrases, strict=True))
        middle = (one.boxes[..., :2] + one.boxes[..., 2:]) / 2 / [one.size[1], one.size[0]]
        assert np.allclose(truth.centres, middle, atol=0.02, equal_nan=True)
    (told,) = parts.grounded(engine.model, engine.processor, drawn[:1])
    scores = masks.judge_masks(engine.model, [replace(told, said=())])
    assert scores.keys() == {"exact prompted"} and scores["exact prompted"] > 0.4
    assert len(told.said) == len(drawn[0].things) and sum(len(said) for said in told.said) > 0


def test_what_follows_a_thing_learns_from_clips_and_the_image_encoder_does_not(engine, drawn_clip):
    model = copy.deepcopy(engine.model)
    shown = masks.as_shown(drawn_clip, model.grounder.side, parts.FRAMES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts.learn_masks(model, [shown, shown], [shown], parts.Plan(0.01, 1e-3, 1), lambda figures: None)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("grounder.sam2.memory_attention") for name in changed)
    assert any(name.startswith("grounder.sam2.memory_encoder") for name in changed)
    assert not any("vision_encoder" in name or "positional_embedding" in name for name in changed)
    assert all(name.startswith("grounder") for name in changed)


def test_a_run_keeps_a_model_that_has_learned_and_goes_on_from_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "HELD", 4)
    monkeypatch.setattr(command, "EVERY", 0.0)
    monkeypatch.setattr(command, "HELD_CLIPS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    learned = (["--sight", "0.01"], ["--words", "0.01"], ["--masks", "0.01", "--clips", "2"])
    states = []
    for parts_ in learned:
        if len(states) == 2:
            (tmp_path / "model").rename(tmp_path / f"{OLD}model")  # where a kill leaves it that comes while it is kept
        monkeypatch.setattr("sys.argv", ["from_scratch", str(tmp_path), "--scenes", "6", *parts_])
        command.main()
        states.append(segue.load(tmp_path / "model", device="cpu", dtype="fp32").model.state_dict())
    told = capsys.readouterr().err
    assert all(f"{what}: 5 of 6, about 0 minutes left" in told for what in ("drawing stills", "encoding"))
    assert "listening to the language model: 7 of 8" in told
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["part"] for line in lines)) == ["sight", "words", "masks"]
    assert lines[1]["held text"] > 0 and "exact followed" in lines[-1]
    first, second, third = states
    again = {name for name, tensor in first.items() if not torch.equal(tensor, second[name])}
    assert any(name.startswith("mllm.language_model") for name in again)
    assert not any(name.startswith(("grounder", "mllm.vision_tower")) for name in again)
    last = {name for name, tensor in second.items() if not torch.equal(tensor, third[name])}
    assert last and all(name.startswith("grounder") for name in last)
