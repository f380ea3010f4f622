"""What a batch teaches: against the recording of the original, and where all masks and prompts stand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segue import loading
from segue.errors import DataError
from segue.geometry.masks import track
from segue.media import open_media
from segue.models.protocol import Batch, seg_states, visual_features
from segue.train import loss_module as training
from segue.train.examples import RowMaker, Truth, collate
from segue.train.from_scratch.objectives import OBJECTIVES, vision_alignment_term, visual_targets
from segue.train.loss_module import LossModule, ObjectResult
from segue.train.mask_terms import decode_candidates, decode_masks, encode_frames, true_iou
from segue.train.recipe import LossWeights
from segue.types import Message, Region, Sample

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


@pytest.fixture(scope="module")
def recorded():
    """The batch that the original learned from, and the model that did: rows of tiles and of two frames."""
    train, weights = GOLDEN / "sa2va_train", GOLDEN / "sa2va_internvl_qwen2"
    if not train.is_dir() or not weights.is_dir():
        pytest.skip("the recordings sa2va_train and sa2va_internvl_qwen2 are not beside this checkout")
    loaded = loading.load(weights, device="cpu", dtype="fp32")
    given = load_file(train / "inputs.safetensors")

    def picture(name):
        return np.asarray(Image.open(weights / name).convert("RGB"))

    processor = loaded.processor
    frames = processor.frames(np.stack([picture("video_0.png"), picture("video_3.png")]))
    pixels = torch.cat([processor.image(picture("imgA.png"), max_tiles=12).pixels, frames.pixels])
    ids, attention = given["input_ids"], given["attention_mask"].long()
    places = (ids == processor.visual_id) & (attention == 1)
    rows = torch.arange(len(pixels) * processor.tile_tokens)
    batch = Batch(ids, attention, given["labels"], pixels, places, rows)
    return loaded.model, processor, batch, load_file(train / "outputs.safetensors")


@torch.no_grad()
def test_the_text_loss_and_the_prompts_are_the_recorded_ones(recorded):
    model, processor, batch, said = recorded
    loss, hidden = model.mllm(batch)
    assert loss.item() == pytest.approx(said["loss.llm_loss"].item(), abs=1e-5)
    prompts = model.prompts(seg_states(hidden, batch.labels, processor.seg_id))
    # the original repeats 2 objects to 5 on one image, then 1 object to 5 on each of two frames
    wanted = said["language_embeddings"].view(3, 5, -1)
    torch.testing.assert_close(prompts[[0, 1, 0, 1, 0]], wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(prompts[[2] * 5].expand(2, -1, -1), wanted[1:], atol=1e-5, rtol=0)


def sample(picture, count=1, frames=0, answer="It is [SEG]."):
    """A dialogue about `count` objects: squares that stand one beside the other in 60 x 80 pixels."""
    shape = (max(frames, 1), 60, 80)
    masks = np.zeros((count, *shape), bool)
    for number in range(count):
        masks[number, :, 10:40, 12 * number : 12 * number + 10] = True
    pixels = picture(60, 80)
    media = open_media(np.stack([pixels] * frames) if frames else pixels)
    regions = tuple(
        Region(
            phrase=f"thing {n}",
            masks=track(masks[n], np.arange(len(masks[n]))),
            box=np.array([12.0 * n, 10, 12 * n + 10, 40]),
        )
        for n in range(count)
    )
    words = " ".join([answer] * count) if count else answer
    return Sample(
        id=f"s{count}",
        task="segment",
        messages=(Message.user("Where?", media), Message("assistant", (words,))),
        regions=regions,
        frames=tuple(range(max(frames, 1))),
        source="test",
        group="g",
    )


@pytest.fixture
def make(engine):
    """The batch of some samples."""

    def rows(*samples, **options):
        maker = RowMaker(processor=engine.processor, side=engine.model.grounder.side, max_tiles=1, **options)
        return collate([maker(one) for one in samples], engine.processor)

    return rows


def loss_module(engine, **options):
    weights, objective = options.pop("weights", LossWeights()), OBJECTIVES[options.pop("objective", "joint")]
    seg_id = engine.processor.seg_id
    return LossModule(engine.model, weights=weights, seg_id=seg_id, objective=objective, num_points=64, **options)


def find(module, rows, decode=decode_masks):
    grounder = module.model.grounder
    return decode(grounder, rows, encode_frames(grounder, [truth for truth, _ in rows]))


@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_its_terms_and_follows_from_the_seed(engine, make, picture):
    batch = make(sample(picture, 2))
    weights = LossWeights(text=0.5, mask=2.0, dice=3.0, align=0.1, iou=0.2, presence=0.3)
    one, again, other = (loss_module(engine, weights=weights)(batch, seed) for seed in (1, 1, 2))
    assert set(one) == {"loss", "text", "mask", "dice", "align", "iou", "presence"}
    total = sum(getattr(weights, name) * term for name, term in one.items() if name != "loss")
    torch.testing.assert_close(one["loss"], total)
    assert torch.equal(one["loss"], again["loss"]) and not torch.equal(one["mask"], other["mask"])
    assert torch.equal(one["text"], other["text"])


def test_a_batch_without_seg_has_mask_losses_of_zero_that_reach_all_that_learns_from_masks(make_engine, picture):
    fresh = make_engine()
    for parameter in fresh.model.parameters():
        parameter.requires_grad_(True)
    maker = RowMaker(processor=fresh.processor, side=fresh.model.grounder.side, max_tiles=1)
    batch = collate([maker(sample(picture, 0, answer="Nothing."))], fresh.processor)
    terms = loss_module(fresh)(batch, 0)
    assert terms["mask"].item() == terms["dice"].item() == 0.0
    terms["loss"].backward()
    reached = [*fresh.model.seg_projector.parameters(), *fresh.model.grounder.parameters()]
    assert all(p.grad is not None and not bool(p.grad.any()) for p in reached)
    assert any(bool(p.grad.any()) for p in fresh.model.mllm.language_model.parameters() if p.grad is not None)


def test_labels_are_needed(engine, make, picture):
    batch = make(sample(picture))
    with pytest.raises(DataError, match="the batch has no labels"):
        loss_module(engine)(replace(batch, batch=replace(batch.batch, labels=None)), 0)


def numbered(count, engine):
    """A truth and prompts of which object number n consists of n alone."""
    numbers = torch.arange(1, count + 1)
    masks = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    phrases = tuple(str(number) for number in numbers.tolist())
    truth = Truth(
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        masks,
        (0,),
        (0,),
        phrases,
        numbers.float().view(-1, 1, 1).expand(-1, 1, 2),
    )
    return truth, numbers.float().view(-1, 1).expand(
        -1, engine.model.config.sam2_config.mask_decoder_config.hidden_size
    )


def drawn(engine, count, seed=0):
    truth, prompts = loss_module(engine)._sampled(numbered(count, engine), torch.Generator().manual_seed(seed))
    numbers = [int(mask.flatten()[0]) for mask in truth.masks]
    # masks, prompts, phrases and centres are of the same objects
    assert (
        prompts[:, 0].int().tolist()
        == truth.centres[:, 0, 0].int().tolist()
        == [int(one) for one in truth.phrases]
        == numbers
    )
    return numbers


def test_fewer_objects_are_repeated_in_turn(engine):
    assert (drawn(engine, 1), drawn(engine, 2), drawn(engine, 5)) == ([1] * 5, [1, 2, 1, 2, 1], [1, 2, 3, 4, 5])


def test_five_of_eight_objects_are_drawn_by_chance_and_prompts_stay_with_their_masks(engine):
    draws = [drawn(engine, 8, seed) for seed in range(12)]
    assert all(len(set(one)) == 5 for one in draws)
    assert {number for one in draws for number in one} == set(range(1, 9))
    assert drawn(engine, 8, 3) == drawn(engine, 8, 3)


@torch.no_grad()
def test_frames_that_are_followed_by_memory_count(engine, make, picture):
    clip = sample(picture, 1, frames=3)
    shown, followed = make(clip), make(clip, frames="first:1")
    assert (shown.truths[0].prompted, followed.truths[0].prompted) == ((0, 1, 2), (0,))
    module = loss_module(engine, num_masks=1)
    prompts = module.language_output(followed).prompts
    found = find(module, [(followed.truths[0], prompts[0])])
    assert len(found.logits) == len(found.masks) == 3
    terms = [module(batch, 0)["mask"].item() for batch in (shown, followed)]
    wrong = replace(followed.truths[0], masks=followed.truths[0].masks.clone())
    wrong.masks[:, 2] = 255 - wrong.masks[:, 2]
    terms.append(module(replace(followed, truths=(wrong,)), 0)["mask"].item())
    assert len(set(terms)) == 3


@torch.no_grad()
def test_evaluation_counts_the_pixels_of_both_masks_and_those_they_share(engine, make, picture, monkeypatch):
    batch = make(sample(picture, 2))
    module, truth = loss_module(engine), batch.truths[0]
    side = truth.masks.shape[-1]
    found = find(module, [(truth, torch.zeros(2, 32))])
    left = torch.full((2, side // 4, side // 4), -9.0)
    left[:, :, : side // 8] = 9.0
    monkeypatch.setattr(training, "decode_masks", lambda *_: replace(found, logits=left))
    results = module.evaluate(batch)
    real = truth.masks[:, 0] > 127
    half = real[:, :, : side // 2]
    assert [one.truth for one in results] == real.flatten(1).sum(1).tolist()
    assert [one.found for one in results] == [side * side // 2] * 2
    assert [one.intersection for one in results] == half.flatten(1).sum(1).tolist()
    assert isinstance(results[0], ObjectResult)


@torch.no_grad()
def test_an_object_is_emitted_if_the_model_would_say_its_seg_itself(engine, make, picture, teach):
    one = sample(picture, 1)
    batch = make(one)
    teach(engine, [[one.messages[0]]], ["It is [SEG].<|im_end|>"])
    assert [found.is_emitted for found in loss_module(engine).evaluate(batch)] == [True]
    teach(engine, [[one.messages[0]]], ["It is a, a.<|im_end|>"])
    assert [found.is_emitted for found in loss_module(engine).evaluate(batch)] == [False]


def test_iou_is_shared_pixels_over_all_and_two_empty_masks_agree():
    logits, masks = torch.full((3, 4, 4), -1.0), torch.zeros(3, 16, 16)
    logits[0, :, :2], masks[0, :8] = 1.0, 1.0  # left half and upper half: a quarter of three quarters
    logits[1] = 1.0  # all, of nothing
    torch.testing.assert_close(true_iou(logits, masks), torch.tensor([1 / 3, 0.0, 1.0]))


@torch.no_grad()
def test_decoupled_the_grounder_does_not_hear_the_language_model_and_all_three_of_its_masks_learn(
    engine, make, picture
):
    batch = make(sample(picture, 2))
    weights = LossWeights(target_embedding=1.0, vision_alignment=1.0)
    decoupled, joint = (loss_module(engine, objective=one, weights=weights) for one in ("decoupled", "joint"))
    terms = {"loss", "text", "mask", "dice", "target_embedding", "vision_alignment"}
    assert set(decoupled(batch, 0)) == set(joint(batch, 0)) == terms
    masks = [module(batch, 0)["mask"] for module in (decoupled, joint)]
    output = decoupled.language_output(batch)
    silent = replace(output, prompts=[prompts * 0 for prompts in output.prompts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossModule, "language_output", lambda *_: silent)
        assert decoupled(batch, 0)["mask"] == masks[0] and joint(batch, 0)["mask"] != masks[1]
    rows = [(batch.truths[0], output.prompts[0])]
    tried, found = (find(decoupled, rows, decode) for decode in (decode_candidates, decode_masks))
    assert len(tried.logits) == 3 * len(found.logits)


def test_vision_alignment_teaches_the_features_that_show_an_object_and_no_others(engine, make, picture):
    batch = make(sample(picture, 2))
    features = visual_features(engine.model.mllm, batch.batch).detach().requires_grad_()
    vision_alignment_term(engine.model, batch, features).backward()
    truth, cells = batch.truths[0], engine.model.mllm.config.tile_tokens
    side = round(cells**0.5)
    share = torch.nn.functional.interpolate(truth.masks[:, [0]].float() / 255, side, mode="area").flatten(1).amax(0)
    touched = features.grad[:cells].abs().sum(1) > 0
    assert torch.equal(touched, share > 0.3)


def test_a_thing_smaller_than_a_cell_is_seen_in_the_cell_that_shows_most_of_it():
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    masks[0, 0, :32, :32] = 255
    masks[1, 0, 47:51, 45:56] = 255  # a little of it in cells 10, 11 and 14
    centres = torch.tensor([[[0.3, 0.3]], [[0.75, 0.75]]])
    truth = Truth(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), masks, (0,), (0,), ("a", "b"), centres)
    features = torch.arange(16.0)[:, None]
    targets = visual_targets(truth, 0, 5, features, 4)
    assert targets.features[:, 0].tolist() == [0, 1, 4, 5, 15]
    assert targets.objects.tolist() == [5] * 4 + [6]
    assert targets.weights.tolist() == [0.25] * 4 + [1.0]
    assert targets.centres[-1].tolist() == [0.75, 0.75]


@pytest.fixture
def learner(engine):
    """The engine that all tests share, all of which learns meanwhile."""

    def set_all(is_learned):
        for parameter in engine.model.parameters():
            parameter.requires_grad_(is_learned)
            parameter.grad = None

    set_all(True)
    yield engine
    set_all(False)


@pytest.mark.parametrize(
    ("objective", "terms", "untouched"),
    [
        ("vision_alignment", {"loss", "vision_alignment"}, ("mllm.language_model", "grounder")),
        ("language", {"loss", "text", "target_embedding", "vision_alignment"}, ("grounder",)),
    ],
)
def test_language_and_vision_alignment_leave_alone_what_they_do_not_teach(
    learner, make, picture, objective, terms, untouched
):
    module = loss_module(learner, objective=objective, weights=LossWeights(target_embedding=1.0, vision_alignment=1.0))
    found = module(make(sample(picture, 2)), 0)
    assert set(found) == terms
    torch.testing.assert_close(found["loss"], sum(found[name] for name in terms - {"loss"}))
    found["loss"].backward()
    touched = {name for name, one in learner.model.named_parameters() if one.grad is not None and one.grad.any()}
    assert touched and not [name for name in touched if name.startswith(untouched)]
    assert any(name.startswith("mllm.vision_tower") for name in touched)


def test_a_batch_that_shows_nothing_can_be_learned_from_by_vision_alignment_and_changes_nothing(learner, make, picture):
    found = loss_module(learner, objective="vision_alignment", weights=LossWeights(vision_alignment=1.0))(
        make(sample(picture, 0, answer="Nothing.")), 0
    )
    found["loss"].backward()
    assert found["loss"] == 0
    assert all(not one.grad.any() for one in learner.model.mllm.vision_tower.parameters())


def test_nothing_to_see_costs_nothing(engine, make):
    messages = (Message.user("Who?"), Message("assistant", ("Me.",)))
    terms = loss_module(engine, weights=LossWeights(target_embedding=1.0, vision_alignment=1.0))(
        make(Sample("a", "chat", messages)), 0
    )
    assert terms["target_embedding"] == terms["vision_alignment"] == 0


@torch.no_grad()
def test_clips_that_are_followed_together_are_followed_as_each_alone(engine, make, picture):
    clips = [sample(picture, count, frames=3) for count in (2, 1)]
    clips[1] = replace(
        clips[1],
        messages=(Message.user("Where?", open_media(np.stack([picture(60, 80, seed=7)] * 3))), *clips[1].messages[1:]),
    )
    batch = make(sample(picture, 1), *clips, frames="first:1")
    module = loss_module(engine, num_masks=2)
    prompts = module.language_output(batch).prompts
    rows = [module._sampled(row, torch.Generator()) for row in zip(batch.truths, prompts, strict=True)]
    together = find(module, rows)
    alone = [find(module, [row]) for row in rows]
    # first what was asked for, row by row; then the followed frames, each of both clips
    asked = [one.logits[:2] for one in alone]
    followed = [one.logits[2 + 2 * frame : 4 + 2 * frame] for frame in (0, 1) for one in alone[1:]]
    torch.testing.assert_close(together.logits, torch.cat([*asked, *followed]), atol=1e-3, rtol=1e-3)
    assert len(together.masks) == len(together.logits) == 6 + 8
