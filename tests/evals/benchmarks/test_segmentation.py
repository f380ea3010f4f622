"""Every benchmark of masks, from a folder in its official layout to its figures."""

import json
import pickle
import zipfile
from io import BytesIO

import numpy as np
import pytest
from fixtures_segmentation import FIXTURES, media_of, perfect
from PIL import Image

from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError
from segue.evals.benchmarks.segmentation import PIXELS
from segue.geometry.masks import track
from segue.types import Answer, Region

RECORDS = {one.name: one for one in PIXELS}
JUDGED = {name: one for name, one in RECORDS.items() if one.submit is None}


def samples_of(root, record):
    dataset = DATASETS[record.dataset](FIXTURES[record.name](root), record.split, **record.options)
    samples = [dataset.get(number, rng_for(0, 0, number)) for number in range(len(dataset))]
    assert len({sample.id for sample in samples}) == len(samples) > 1
    assert all(dataset.medium_of(number) or len(sample.frames) == 1 for number, sample in enumerate(samples))
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset), "workers are given datasets"
    return samples


def rows_of(root, record, speak):
    """Rows as the runner makes them; `speak` answers a sample."""
    scored = [(sample, record.score(sample, speak(sample))) for sample in samples_of(root, record)]
    return json.loads(
        json.dumps([{**row, "id": sample.id, "group": sample.group or sample.id} for sample, row in scored])
    )


def silent(sample):
    return Answer("")


def wrong(sample):
    """Everything that is not meant."""
    size = media_of(sample).size
    truth = np.zeros((len(sample.frames), *size), bool)
    for region in sample.regions:
        truth |= np.stack([region.masks.dense(place) for place in range(len(sample.frames))])
    return Answer("nothing of the kind", (Region(masks=track(~truth, np.array(sample.frames))),))


def test_every_record_has_a_name_of_its_own_and_a_fixture():
    assert len(RECORDS) == len(PIXELS)
    assert set(FIXTURES) == set(RECORDS)


@pytest.mark.parametrize("name", JUDGED)
def test_right_answers_give_the_best_of_every_figure_in_any_order_of_rows(name, tmp_path):
    record = RECORDS[name]
    rows = rows_of(tmp_path, record, perfect)
    figures = record.reduce(rows)
    assert record.headline in figures
    assert figures.pop("unparsed", 0.0) == 0
    best = {figure: 1000.0 if figure == "cider" else 100.0 for figure in figures}
    assert figures == pytest.approx(best, abs=1e-3)
    assert {**record.reduce(rows[::-1]), "unparsed": 0} == {**figures, "unparsed": 0}


@pytest.mark.parametrize("name", JUDGED)
def test_silence_gives_the_worst_headline_and_no_rows_are_an_error(name, tmp_path):
    record = RECORDS[name]
    figures = record.reduce(rows_of(tmp_path, record, silent))
    if "N-acc" in figures:
        assert (figures["cIoU"], figures["T-acc"], figures["N-acc"]) == (0, 0, 100), "it is right where nothing is"
    elif record.dataset == "ref_vos":
        assert figures[record.headline] < 20, "it is right on frames where what is meant is not in sight"
    else:
        assert figures[record.headline] == 0
    assert figures.get("unparsed", 100) == 100
    with pytest.raises(DataError, match="no rows"):
        record.reduce([])


@pytest.mark.parametrize("name", [name for name, one in JUDGED.items() if one.task == "segment"])
def test_all_that_is_not_meant_overlaps_hardly(name, tmp_path):
    record = RECORDS[name]
    figures = record.reduce(rows_of(tmp_path, record, wrong))
    names = ("semi-supervised J", "J", record.headline)
    assert figures[next(figure for figure in names if figure in figures)] < 20
    assert figures.get("N-acc", 0) == 0 and figures.get("no-target accuracy", 0) == 0


@pytest.mark.parametrize("name", RECORDS)
def test_the_files_that_a_record_names_are_those_that_are_read(name, tmp_path):
    record = RECORDS[name]
    root = FIXTURES[name](tmp_path)
    assert all(any(list(root.glob(way)) for way in pattern.split(" | ")) for pattern in record.files)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match="there is no"):
        DATASETS[record.dataset](tmp_path / "elsewhere", record.split, **record.options)
    with pytest.raises(ConfigError):
        DATASETS[record.dataset](root, "nowhere", **record.options)


@pytest.mark.parametrize("name", [name for name, one in RECORDS.items() if one.submit is not None])
def test_a_server_gets_a_picture_for_every_frame_of_every_expression(name, tmp_path):
    record = RECORDS[name]
    samples = samples_of(tmp_path, record)
    mask = np.zeros((len(samples[0].frames), *media_of(samples[0]).size), bool)
    mask[:, 3:9, 4:20] = True
    first = Answer("", (Region(masks=track(mask, np.array(samples[0].frames))),))
    scored = [record.score(sample, first if sample is samples[0] else silent(sample)) for sample in samples]
    path = record.submit(json.loads(json.dumps(scored)), tmp_path / "out")
    with zipfile.ZipFile(path) as archive:
        pictures = {one: Image.open(BytesIO(archive.read(one))) for one in archive.namelist()}
    assert path.name == "out.zip" and len(pictures) == sum(len(sample.frames) for sample in samples)
    assert {(picture.mode, picture.size) for picture in pictures.values()} == {("L", (60, 40))}
    drawn = {one.rpartition("/")[0]: np.asarray(picture) for one, picture in pictures.items()}
    video, expression = (samples[0].target[part] for part in ("video", "expression"))
    assert (drawn.pop(f"Annotations/{video}/{expression}") == 255 * mask[0]).all()
    assert not any(picture.any() for picture in drawn.values()), "silence is an empty picture"
    assert record.reduce(scored) == {"answers": len(samples), "empty": pytest.approx(100 * (1 - 1 / len(samples)))}
    assert record.submit(scored[::-1], tmp_path / "again").read_bytes() == path.read_bytes()


def test_prompts_are_those_of_the_protocol(tmp_path):
    asked = {
        name: [sample.messages[0].text for sample in samples_of(tmp_path / name, RECORDS[name])]
        for name in ("refcoco_val", "mevis_u", "reasonseg_val", "gcg_val", "gcg_val_upstream", "region_caption")
    }
    assert asked["refcoco_val"][0] == "\n Please segment thing 0 here in this image."
    assert asked["mevis_u"][0] == "\nPlease segment The thing 0.."
    assert "\n what is thing 1? Please respond with a segmentation mask." in asked["mevis_u"]
    assert asked["reasonseg_val"] == [
        "\n What would a be for? Please respond with a segmentation mask.",
        "\n Please segment the thing for the roof in this image.",
    ]
    assert "Please respond with interleaved segmentation masks" in asked["gcg_val"][0]
    assert "marked by region1." in asked["region_caption"][0]
