import pytest
import torch

from segue.train.codes import code_loss, codes, loose_codes
from segue.train.examples import Truth


@pytest.fixture(scope="module")
def grounder(engine):
    return engine.model.grounder


def truth(*phrases, frames=1, centres=None):
    count = len(phrases)
    places = torch.tensor(centres) if centres else torch.full((count, 2), 0.5)
    masks = torch.zeros(count, frames, 4, 4, dtype=torch.uint8)
    shown = torch.zeros(frames, 3, 4, 4, dtype=torch.uint8)
    return Truth(shown, masks, tuple(range(frames)), tuple(range(frames)), phrases, places)


@torch.no_grad()
def test_the_same_words_at_the_same_place_have_the_same_code_everywhere(grounder):
    one, other = codes(truth("red star", "blue star"), grounder), codes(truth("red star"), grounder)
    assert torch.equal(one[0], other[0]) and not torch.allclose(one[0], one[1])
    # words of a phrase are summed, so what two phrases share, their codes share
    twice = codes(truth("red", "star", "red star", frames=2), grounder)
    torch.testing.assert_close(twice[0] + twice[1], twice[2])


@torch.no_grad()
def test_places_count_in_stills_and_not_in_clips(grounder):
    there = [[0.1, 0.2], [0.8, 0.2]]
    still, clip = (codes(truth("a", "a", frames=count, centres=there), grounder) for count in (1, 3))
    assert not torch.allclose(still[0], still[1]) and torch.equal(clip[0], clip[1])
    # a place is coded as SAM 2 codes the places of a frame
    place = grounder.sam2.shared_image_embedding(torch.tensor(there))
    torch.testing.assert_close((still - clip) / (still - clip)[0, 0], place / place[0, 0])


@torch.no_grad()
def test_an_object_without_words_has_its_place_alone(grounder):
    assert not codes(truth("", frames=2), grounder).any()


@torch.no_grad()
def test_loose_codes_are_words_or_place_or_both_and_follow_from_the_generator(grounder):
    many = truth(*["star"] * 400, centres=[[0.2, 0.3]] * 400)
    drawn = [loose_codes(many, grounder, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    both = codes(many, grounder)[0]
    words = codes(truth("star", frames=2), grounder)[0]
    kinds = torch.stack([words, both - words, both])
    nearest = torch.cdist(drawn[0], kinds).argmin(1).bincount(minlength=3) / 400
    torch.testing.assert_close(nearest, torch.tensor([0.35, 0.25, 0.4]), atol=0.1, rtol=0)
    assert len(drawn[0].unique(dim=0)) == 400  # never quite exact


@torch.no_grad()
def test_a_prompt_that_says_other_words_or_nothing_is_further_from_the_code(grounder):
    phrases = ("red star", "blue ring")
    wanted = codes(truth(*phrases, frames=2), grounder)
    right, none, crossed = (code_loss(said, wanted, phrases) for said in (wanted, wanted * 0, wanted.flip(0)))
    assert right < none < crossed


@torch.no_grad()
def test_objects_without_words_differ_by_their_places_alone(grounder):
    wanted = codes(truth("", ""), grounder)
    assert code_loss(wanted, wanted, ("", "")) == 0
