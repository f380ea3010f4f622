import pytest
import torch

from segue.train.examples import Truth
from segue.train.from_scratch.target_embeddings import (
    VisualTargets,
    noisy_target_embeddings,
    summed,
    target_embedding_loss,
    target_embeddings,
    vision_alignment_loss,
)

NOWHERE = float("nan")


@pytest.fixture(scope="module")
def grounder(engine):
    return engine.model.grounder


def truth(*phrases, frames=1, centres=None, prompted=None):
    """Things of these names; `centres` of each on each frame, else all in the middle."""
    count = len(phrases)
    places = torch.tensor(centres) if centres else torch.full((count, frames, 2), 0.5)
    masks = torch.zeros(count, frames, 4, 4, dtype=torch.uint8)
    shown = torch.zeros(frames, 3, 4, 4, dtype=torch.uint8)
    return Truth(shown, masks, prompted or tuple(range(frames)), tuple(range(frames)), phrases, places)


def place(grounder, x, y):
    return grounder.sam2.shared_image_embedding(torch.tensor([[x, y]]))[0]


@torch.no_grad()
def test_the_same_words_at_the_same_place_have_the_same_code_everywhere(grounder):
    one, other = (
        target_embeddings([truth("red star", "blue star")], grounder),
        target_embeddings([truth("red star")], grounder),
    )
    torch.testing.assert_close(one[0], other[0])
    assert not torch.allclose(one[0], one[1])
    # rows are coded together or apart
    both = target_embeddings([truth("red star", "blue star"), truth("red star")], grounder)
    torch.testing.assert_close(both, torch.cat([one, other]))


@torch.no_grad()
def test_words_of_a_phrase_are_summed_so_what_two_phrases_share_their_codes_share(grounder):
    nowhere = [[[NOWHERE, NOWHERE]]] * 3
    red, star, both = target_embeddings([truth("red", "star", "red star", centres=nowhere)], grounder)
    torch.testing.assert_close(red + star, both)


@torch.no_grad()
def test_a_place_is_coded_as_sam_2_codes_the_places_of_a_frame(grounder):
    here, there = target_embeddings([truth("", "", centres=[[[0.1, 0.2]], [[0.8, 0.2]]])], grounder)
    for code, x in ((here, 0.1), (there, 0.8)):
        torch.testing.assert_close(code / code[0], place(grounder, x, 0.2) / place(grounder, x, 0.2)[0])


@torch.no_grad()
def test_in_a_clip_the_places_on_the_asked_frames_that_show_a_thing_are_said_at_once(grounder):
    path = [[[0.1, 0.2], [0.9, 0.9], [NOWHERE, NOWHERE], [0.5, 0.4]]]
    (code,) = target_embeddings([truth("", frames=4, centres=path, prompted=(0, 2, 3))], grounder)
    (still,) = target_embeddings([truth("", centres=[[[0.1, 0.2]]])], grounder)
    scale = still / place(grounder, 0.1, 0.2)
    torch.testing.assert_close(code, scale * (place(grounder, 0.1, 0.2) + place(grounder, 0.5, 0.4)) / 2)


@torch.no_grad()
def test_loose_codes_are_words_or_place_or_both_and_follow_from_the_generator(grounder):
    many = truth(*["star"] * 400, centres=[[[0.2, 0.3]]] * 400)
    drawn = [noisy_target_embeddings([many], grounder, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].unique(dim=0)) == 400  # never quite exact
    words = target_embeddings([truth("star", centres=[[[NOWHERE, NOWHERE]]])], grounder)[0]
    there = target_embeddings([many], grounder)[0] - words
    has_words, has_place = ((drawn[0] @ part / part.norm() ** 2) > 0.15 for part in (words, there))
    shares = [float(x.float().mean()) for x in (has_words & ~has_place, has_place & ~has_words, has_words & has_place)]
    assert 0.12 < shares[0] < 0.3 and 0.15 < shares[1] < 0.45 and 0.4 < shares[2] < 0.75


@torch.no_grad()
def test_a_prompt_that_says_other_words_or_nothing_is_further_from_the_code(grounder):
    asked = [truth("red star", "blue ring", centres=[[[0.1, 0.2]], [[0.8, 0.9]]])]
    wanted = target_embeddings(asked, grounder)
    right, none, crossed = (
        target_embedding_loss(said, asked, grounder) for said in (wanted, wanted * 0, wanted.flip(0))
    )
    assert set(right) == {"distance", "words", "places"} and right["distance"] == 0
    assert all(right[name] < none[name] < crossed[name] for name in right)
    torch.testing.assert_close(summed(none), 0.3 * none["distance"] + none["words"] + none["places"])


@torch.no_grad()
def test_words_of_one_object_do_not_push_one_another_away(grounder):
    named = ["large striped red star", "blue ring"]
    words = target_embeddings([truth(*" ".join(named).split(), centres=[[[NOWHERE, NOWHERE]]] * 6)], grounder)
    heard = torch.tensor([[9.0] * 4 + [-9.0] * 2, [-9.0] * 4 + [9.0] * 2])
    prompts = words.shape[1] ** 0.5 * heard @ torch.linalg.pinv(words).T
    assert target_embedding_loss(prompts, [truth(*named)], grounder)["words"] < 1e-3


def test_where_every_word_is_said_there_is_nothing_to_choose(grounder):
    asked = [truth("red star")]
    prompts = torch.zeros_like(target_embeddings(asked, grounder)).requires_grad_()
    target_embedding_loss(prompts, asked, grounder)["words"].backward()
    assert not prompts.grad.any()


@torch.no_grad()
def test_objects_without_words_or_places_cost_nothing_there(grounder):
    without = [truth("", centres=[[[NOWHERE, NOWHERE]]])]
    loss = target_embedding_loss(target_embeddings(without, grounder), without, grounder)
    assert not any(bool(term) for term in loss.values())


@torch.no_grad()
def test_features_are_judged_by_the_object_that_they_show_and_by_where_it_is(grounder):
    shown = [truth("red star", centres=[[[0.1, 0.2]]]), truth("blue ring", centres=[[[0.8, 0.9]]])]
    wanted, where = target_embeddings(shown, grounder), torch.tensor([[0.1, 0.2], [0.8, 0.9]])
    which = torch.tensor([1, 0, 1])
    targets = [VisualTargets(wanted[order], which, where[which], torch.ones(3)) for order in (which, 1 - which)]
    right, crossed = (vision_alignment_loss(one, shown, grounder) for one in targets)
    torch.testing.assert_close(right["distance"], torch.tensor(0.0))
    assert all(right[name] < crossed[name] for name in ("distance", "words", "places"))


@torch.no_grad()
def test_features_count_as_they_are_told(grounder):
    shown, which = [truth("red star"), truth("blue ring")], torch.tensor([0, 1, 1])
    seen, where = torch.randn(3, target_embeddings(shown, grounder).shape[1]), torch.full((3, 2), 0.5)

    def loss(rows, *weights):
        targets = VisualTargets(seen[rows], which[rows], where[rows], torch.tensor(weights))
        return summed(vision_alignment_loss(targets, shown, grounder))

    torch.testing.assert_close(loss([0, 1, 2], 1.0, 0.5, 0.5), (loss([0], 1.0) + loss([1, 2], 1.0, 1.0)) / 2)
