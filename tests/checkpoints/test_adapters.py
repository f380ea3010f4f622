"""What `checkpoint.json` says, sound or not."""

import json

import pytest

from segue.checkpoints import adapters
from segue.checkpoints.adapters import RECORD, CheckpointRecord
from segue.errors import CheckpointError

SOUND = CheckpointRecord(
    base="base",
    base_folder="../base",
    base_hash="0",
    tensors_hash="1",
    stage="all",
    step=3,
    stage_step=3,
    position=24,
    lora={"r": 2, "lora_alpha": 4.0},
    token_ids=(5, 6),
    metric="iou",
    metrics={"iou": 0.5},
)


def test_what_was_written_is_read(tmp_path):
    SOUND.write(tmp_path)
    assert adapters.read(tmp_path) == SOUND


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", None),
        ("base_folder", 5),
        ("base_folder", "a\0b"),
        ("step", "3"),
        ("lora", []),
        ("lora", {"r": 2}),
        ("lora", {"r": 0, "lora_alpha": 4}),
        ("lora", {"r": 2, "lora_alpha": "4"}),
        ("lora", {"r": 2, "lora_alpha": float("nan")}),
        ("token_ids", ["5"]),
        ("metrics", []),
        ("metrics", {"iou": "good"}),
        ("image_side", "448"),
        ("template", 5),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_name(tmp_path, field, value):
    SOUND.write(tmp_path)
    raw = json.loads((tmp_path / RECORD).read_text("utf-8"))
    (tmp_path / RECORD).write_text(json.dumps(raw | {field: value}), "utf-8")
    with pytest.raises(CheckpointError, match=rf"values of another kind than expected \({field}\)"):
        adapters.read(tmp_path)


def test_fields_too_many_or_missing_are_named(tmp_path):
    SOUND.write(tmp_path)
    raw = json.loads((tmp_path / RECORD).read_text("utf-8"))
    (tmp_path / RECORD).write_text(json.dumps({"more": 1, **raw}), "utf-8")
    with pytest.raises(CheckpointError, match=r"other fields than expected \(more\)"):
        adapters.read(tmp_path)
