"""Grounded captions: AP50 as COCOeval has it, pairs, recall that stops, and what is read from an answer."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segue.evals.metrics import grounded_captions, region_captions
from segue.geometry.masks import encode, track
from segue.types import Answer, Media, Message, Region, Sample

SIZE = (30, 40)


def box(left: int, top: int, width: int, height: int) -> np.ndarray:
    made = np.zeros(SIZE, bool)
    made[top : top + height, left : left + width] = True
    return made


def rle(mask: np.ndarray) -> dict:
    return {"size": list(SIZE), "counts": encode(mask)}


def scored(name, found, truth, labels=(), raw=""):
    media = Media(np.zeros((*SIZE, 3), np.uint8), "image", SIZE)
    target = {"references": ["a cat"], "labels": list(labels), "masks": [rle(mask) for mask in truth]}
    messages = (Message.user("?", media), Message("assistant", ("a cat",)))
    regions = tuple(Region(masks=track(mask[None], np.zeros(1, np.int64))) for mask in found)
    row = grounded_captions.score(
        Sample(name, "caption", messages, frames=(0,), target=target), Answer("", regions, raw)
    )
    return {**row, "id": name}


def official(images) -> float:
    """AP50 of COCOeval for (name, found, truth), all masks equally sure."""
    truth, found = [], []
    for name, mine, true in images:
        for mask in true:
            one = {"id": len(truth) + 1, "image_id": name, "category_id": 1, "iscrowd": 0, "area": int(mask.sum())}
            truth.append({**one, "segmentation": rle(mask), "bbox": [0, 0, 1, 1]})
        found += [{"image_id": name, "category_id": 1, "segmentation": rle(mask), "score": 1.0} for mask in mine]
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        names = [{"id": name, "height": SIZE[0], "width": SIZE[1]} for name, _, _ in images]
        data.dataset = {"images": names, "annotations": truth, "categories": [{"id": 1}], "info": {}}
        data.createIndex()
        judge = COCOeval(data, data.loadRes(found), "segm")
        judge.params.catIds = [1]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[1])


def drawn(seed: int):
    """Images with true masks and found ones: near, elsewhere, twice the same, overlapping, or none."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(int(rng.integers(2, 7))):
        truth = [box(*rng.integers(0, 15, 2), *rng.integers(3, 15, 2)) for _ in range(rng.integers(0, 5))]
        near = [np.roll(mask, rng.integers(-3, 4, 2), (0, 1)) for mask in truth if rng.random() < 0.8]
        found = (
            near + near[: rng.integers(0, 2)] + [box(*rng.integers(0, 15, 2), 6, 6) for _ in range(rng.integers(0, 3))]
        )
        images.append((f"{rng.integers(10**6)}-{number}", found, truth))
    images.append(("last", [box(1, 1, 9, 9)], [box(1, 1, 9, 9)]))
    return images


@pytest.mark.parametrize("seed", range(12))
def test_ap50_equals_cocoeval(seed):
    images = drawn(seed)
    rows = [scored(*image) for image in images]
    assert grounded_captions.average_precision(rows) == pytest.approx(official(images), abs=1e-9)
    assert grounded_captions.average_precision(rows[::-1]) == grounded_captions.average_precision(rows)


def test_of_two_true_masks_that_fit_equally_the_later_is_taken_as_cocoeval_does():
    twin = box(5, 5, 10, 10)
    images = [("a", [twin, twin], [twin, twin]), ("b", [box(0, 0, 5, 5)], [box(20, 20, 5, 5)])]
    rows = [scored(*image) for image in images]
    assert rows[0]["hits"] == [True, True]
    assert grounded_captions.average_precision(rows) == pytest.approx(official(images), abs=1e-9)


def test_pairs_are_taken_by_falling_iou_and_what_has_no_partner_does_not_count():
    truth = [box(0, 0, 10, 10), box(20, 0, 10, 10)]
    row = scored("a", [box(0, 0, 10, 5), box(0, 0, 10, 8), box(30, 20, 5, 5)], truth, ["x"])
    assert grounded_captions.reduce([row])["mIoU"] == pytest.approx(80)
    assert grounded_captions.reduce([scored("a", [], truth, ["x"])])["mIoU"] == 0


RAW = "<s>A <p> tall man </p> [SEG] rides\n a  <p>grey horse</p> [SEG] .<|im_end|>"


def test_caption_and_phrases_are_read_from_what_was_generated():
    row = scored("a", [box(0, 0, 3, 3)] * 2, [], raw=RAW)
    assert row["phrases"] == ["tall man", "grey horse"]
    assert row["caption"] == "A tall man rides a grey horse ."


TWO = [box(0, 0, 10, 10), box(20, 0, 10, 10)]
LABELS = ["a tall man", "the grey horse"]


@pytest.mark.parametrize(
    ("phrases", "stopping", "passing"),
    [
        (["tall man", "grey horses"], 1.0, 1.0),
        (["red bus", "grey horse"], 0.0, 0.5),  # the best pair fails, and ends the search
        (["tall man", "red bus"], 0.5, 0.5),
        (["tall man"], 0.5, 0.5),  # a mask without a phrase
        ([], 0.0, 0.0),
    ],
)
def test_recall_stops_at_the_first_pair_that_does_not_agree(phrases, stopping, passing):
    found = [TWO[0], box(20, 0, 10, 8)]
    raw = "".join(f"<p> {phrase} </p> [SEG] " for phrase in phrases)
    row = scored("a", found, TWO, LABELS, raw)
    assert grounded_captions.recall([row], grounded_captions.word_similarity) == stopping
    assert grounded_captions.recall([row], grounded_captions.word_similarity, stops=False) == passing


def test_recall_pools_labels_over_images():
    found = scored("a", TWO, TWO, LABELS, RAW)
    missed = scored("b", [], TWO[:1], ["a dog"])
    assert grounded_captions.recall([found, missed], grounded_captions.word_similarity) == pytest.approx(2 / 3)


def test_phrases_can_be_compared_by_bert(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    similarity = grounded_captions.bert_similarity(tmp_path)
    assert similarity("a cat", "a cat") == pytest.approx(1, abs=1e-5)
    assert similarity("a cat", "a dog") == pytest.approx(similarity("a dog", "a cat"), abs=1e-6)
    assert similarity("a cat", "a dog") < 0.9999


def said(text, score):
    media = Media(np.zeros((*SIZE, 3), np.uint8), "image", SIZE)
    return score(Sample("a", "region", (Message.user("?", media), Message("assistant", ("x",)))), Answer(text))[
        "caption"
    ]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("The region marked by region1 shows a dog.", "a dog."),
        ("region1: This is a dish", "This is a dish"),
        ("region1 is a man who is tall", "a man who is tall"),
        ("a list of showstoppers", "a list of showstoppers"),
    ],
)
def test_a_region_is_described_without_its_name(text, clean):
    assert said(text, region_captions.score) == clean


def test_region_words_removed_within_words_where_upstream_did_so():
    assert said("region1: This shows a dish", region_captions.score_upstream) == "Th  a dh"
