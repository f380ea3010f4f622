"""The parts of a model of scenes, each alone: what they learn from is true, and they read as the whole model does."""

import json

import numpy as np
import pytest
import torch

import segue
from segue import prepare
from segue.media import open_media
from segue.synth import scene
from segue.synth.backgrounds import BACKGROUNDS
from segue.synth.drawings import KINDS
from segue.train.from_scratch import __main__ as command
from segue.train.from_scratch import parts, sight, words
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


def test_a_run_keeps_a_model_that_has_learned_and_goes_on_from_it(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "HELD", 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    arguments = ["from_scratch", str(tmp_path), "--scenes", "6", "--sight", "0.01", "--words", "0.01"]
    states = []
    for _ in range(2):
        monkeypatch.setattr("sys.argv", arguments)
        command.main()
        states.append(segue.load(tmp_path / "model", device="cpu", dtype="fp32").model.state_dict())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["part"] for line in lines} == {"sight", "words"} and lines[-1]["held text"] > 0
    changed = {name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])}
    assert any(name.startswith("mllm.vision_tower") for name in changed)
    assert any(name.startswith("mllm.language_model") for name in changed)
    assert not any(name.startswith("grounder") for name in changed)
