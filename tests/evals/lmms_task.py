"""A task of lmms-eval about drawn scenes: stills, a clip and one question about two images, on this disk alone.

The process that runs `lmms_eval` imports this file by the path that the task's YAML gives.
"""

import json
from pathlib import Path

from PIL import Image

TASK = """
task: segue_scenes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function lmms_task.visuals
doc_to_text: !function lmms_task.text
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 16
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
metadata:
  - version: 0.0
"""


def visuals(doc):
    if doc["video"]:
        return [doc["video"]]
    return [Image.open(path) for path in doc["images"]]


def text(doc):
    return doc["question"]


def write(folder: Path, *, stills: int) -> None:
    """The task's files: rows with the closed questions of some scenes, and their pictures."""
    from segue.output.export import OverlayWriter, write_png
    from segue.synth import clip, scene

    rows, pictures = [], []
    for number in range(stills):
        drawn = scene(0, number, split="test")
        pictures.append(str(folder / f"{number}.png"))
        write_png(Path(pictures[-1]), drawn.frames[0])
        rows += [_row(question, images=[pictures[-1]]) for question in drawn.questions]
    drawn = clip(0, 0, split="test", frames=6)
    with OverlayWriter(folder / "clip.mp4", 5, drawn.frames[0].shape[:2]) as video:
        for frame in drawn.frames:
            video.write(frame)
    rows += [_row(question, video=str(folder / "clip.mp4")) for question in drawn.questions[:3]]
    rows.append(_row(drawn.questions[0], images=pictures[:2]))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "segue_scenes.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    (folder / "lmms_task.py").write_text(Path(__file__).read_text())


def _row(question, *, images=(), video=""):
    return {
        "question": question.words["en"],
        "answer": question.answers["en"],
        "images": list(images),
        "video": video,
    }
