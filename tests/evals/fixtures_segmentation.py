"""Tiny folders in the official layouts of the benchmarks of masks: `FIXTURES[name](root)` writes one, returns its root.

Every mask is a formula, and no two rows of a folder have the same truth: no constant answer is right everywhere.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from layouts import OVERLAPPING, SIZE, SQUARE, box_mask, rle, runs, write_frames, write_image, write_json
from layouts import write_pickle as pickled
from PIL import Image

from segue.output.export import davis_palette
from segue.types import Answer, MaskTrack, Media, Region

FRAMES = [f"{number:05d}" for number in range(6)]
TRIANGLE = [40, 5, 55, 5, 55, 20]
COCO = "glamm_data/images/coco2014/train2014"


def refs(root: Path, variant: str, split: str) -> Path:
    """Two images with three objects, each with one or two sentences; gRefCOCO has a phrase for two and one for none."""
    home, is_general = root / "ref_seg" / variant, variant == "grefcoco"
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in (7, 8)}
    images = [{"id": number, "file_name": name, "height": 40, "width": 60} for number, name in names.items()]
    drawn = {70: (7, OVERLAPPING), 71: (7, [TRIANGLE]), 80: (8, runs(box_mask(3, 4, 20, 11)))}
    annotations = [
        {"id": key, "image_id": image, "iscrowd": 0, "segmentation": shape} for key, (image, shape) in drawn.items()
    ]
    meant = [[70], [71], [80]] + ([[70, 71], [-1]] if is_general else [])
    official = {"test": ("testA", "testB") if variant != "refcocog" else ("test",)}.get(split, (split,))
    content = [
        {
            "ref_id": number,
            "ann_id": keys if is_general else keys[0],
            "image_id": 8 if keys[0] in (80, -1) else 7,
            "split": official[number % len(official)],
            "sentences": [{"sent": f"thing {number} {word}"} for word in ("here", "there")[: 1 + number % 2]],
        }
        for number, keys in enumerate(meant)
    ]
    write_json(home / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    if is_general:
        write_json(home / "grefs(unc).json", content)
    else:
        pickled(home / ("refs(umd).p" if variant == "refcocog" else "refs(unc).p"), content)
    for name in names.values():
        write_image(root / COCO / name)
    return root


def reason(root: Path, split: str) -> Path:
    """A sentence about a square with a part that does not count, and a phrase for a triangle."""
    home = root / "reason_seg/ReasonSeg" / split
    square, hole = (
        [[x, y] for x, y in zip(flat[::2], flat[1::2], strict=True)] for flat in (SQUARE, [15, 10, 20, 10, 20, 15])
    )
    triangle = [[x, y] for x, y in zip(TRIANGLE[::2], TRIANGLE[1::2], strict=True)]
    shapes = {"a": [("target", square), ("ignore", hole)], "b": [("target", triangle)]}
    for name, drawn in shapes.items():
        record = {
            "text": [f"What would {name} be for?" if name == "a" else "the thing for the roof"],
            "is_sentence": name == "a",
            "shapes": [{"label": label, "points": points, "shape_type": "polygon"} for label, points in drawn],
        }
        write_json(home / f"{name}.json", record)
        write_image(home / f"{name}.jpg")
    return root


def moving(step: int, top: int) -> list[np.ndarray]:
    return [box_mask(2 + step * number, top, 12, 10) for number in range(len(FRAMES))]


TRACKS = {"41": moving(3, 4), "42": moving(1, 25), "43": [*moving(2, 14)[:4], *[np.zeros(SIZE, bool)] * 2]}


def expressions(root: Path, file: str, frames: str, about: list[dict]) -> Path:
    """Two videos, the expressions dealt out to them in turn."""
    dealt = {"b": about[::2], "a": about[1::2]}
    videos = {
        name: {
            "frames": FRAMES,
            "height": SIZE[0],
            "width": SIZE[1],
            "expressions": {str(number): one for number, one in enumerate(some)},
        }
        for name, some in dealt.items()
    }
    write_json(root / "video_datas" / file, {"videos": videos})
    for name in dealt:
        write_frames(root / "video_datas" / frames / name, len(FRAMES))
    return root


def encoded(tracks) -> dict:
    return {key: [rle(mask) if mask.any() else None for mask in masks] for key, masks in tracks.items()}


def said(*keys: list[int], **more: list) -> list[dict]:
    """An expression for each list of masks; every other one is a question."""
    return [
        {"exp": f"what is thing {number}?" if number % 2 else f"The thing {number}.", "anno_id": some}
        | {name: values[number] for name, values in more.items()}
        for number, some in enumerate(keys)
    ]


def mevis(root: Path) -> Path:
    write_json(root / "video_datas/mevis/valid_u/mask_dict.json", encoded(TRACKS))
    home = "mevis/valid_u"
    return expressions(root, f"{home}/meta_expressions.json", f"{home}/JPEGImages", said([41], [42], [41, 43]))


def hidden(root: Path, file: str, frames: str) -> Path:
    return expressions(root, file, frames, [{"exp": f"thing {number}"} for number in range(3)])


def davis(root: Path, *, palettes=False) -> Path:
    """Two objects a video, each described by four people; masks as a pickle counted over sorted videos, or as pictures
    with a palette, in one of which something is void."""
    about = [
        {"exp": f"object {number} as {who} says", "obj_id": str(number + 1)} for number in range(2) for who in range(4)
    ]
    dealt = [one for one in about for _ in "ba"]
    expressions(root, "davis17/meta_expressions/valid/meta_expressions.json", "davis17/valid/JPEGImages", dealt)
    objects = {"a": ("41", "42"), "b": ("42", "43")}
    if not palettes:
        tracks = {}
        for name in ("a", "b"):
            for number in range(2):
                for _ in range(4):
                    tracks[str(len(tracks))] = TRACKS[objects[name][number]]
        pickled(root / "video_datas/davis17/valid/mask_dict.pkl", encoded(tracks), protocol=4)
        return root
    for name, keys in objects.items():
        for place, frame in enumerate(FRAMES):
            values = np.zeros(SIZE, np.uint8)
            for number, key in enumerate(keys, start=1):
                values[TRACKS[key][place]] = number
            values[38:, 50:] = 255 * (name == "a")
            picture = Image.fromarray(values, "P")
            picture.putpalette(davis_palette().tobytes())
            path = root / "video_datas/davis17/valid/Annotations" / name / f"{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return root


def revos(root: Path) -> Path:
    """Referring, reasoning and a phrase that means nothing; two masks of the foreground in one frame."""
    home = root / "video_datas/revos"
    write_json(home / "mask_dict.json", encoded(TRACKS))
    shown = [[rle(one), rle(other)] for one, other in zip(TRACKS["41"], TRACKS["42"], strict=True)]
    foreground = {"a": {"masks_rle": shown}, "b": {"masks_rle": [rle(mask) for mask in TRACKS["41"]]}}
    write_json(home / "mask_dict_foreground.json", foreground)
    about = said([41], [42], [43], [], [41, 42], type_id=[0, 1, 1, 2, 0])
    return expressions(root, "revos/meta_expressions_valid_.json", "revos", about)


def ref_sav(root: Path) -> Path:
    write_json(root / "video_datas/ref_sav_eval/mask_dict.json", encoded(TRACKS))
    about = said([41], [42], [43], type_id=[0, 1, 0])
    return expressions(root, "ref_sav_eval/meta_expressions_valid.json", "ref_sav_eval/videos", about)


CAPTIONS = {"red-1": "A man rides a horse.", "blue_2": "Two dogs on the old wall.", "x3": "A kite over a long beach."}
LABELS = {"red-1": ["A man", "a horse"], "blue_2": ["Two dogs", "the old wall"], "x3": ["A kite"]}


def grounded(root: Path, split: str) -> Path:
    home = root / "gcg_val_test"
    images = [{"id": name, "file_name": f"{name}.jpg", "height": 40, "width": 60} for name in CAPTIONS]
    annotations = [
        {"id": 10 * row + place, "image_id": name, "category_id": 1, "iscrowd": 0}
        | {
            "segmentation": rle(box_mask(20 * place, 5 + row, 15, 20)),
            "area": 300,
            "bbox": [20 * place, 5 + row, 15, 20],
        }
        for row, (name, labels) in enumerate(LABELS.items())
        for place in range(len(labels))
    ]
    write_json(home / f"{split}_gcg_coco_mask_gt.json", {"images": images, "annotations": annotations})
    told = [{"image_id": name, "caption": text, "labels": LABELS[name]} for name, text in CAPTIONS.items()]
    write_json(home / f"{split}_gcg_coco_caption_gt.json", {"annotations": told})
    for name in CAPTIONS:
        write_image(root / f"glamm_data/images/grandf/val_test/{name}.jpg")
    return root


def regions(root: Path) -> Path:
    texts = ["a red bus turning left", "the tall man in black", "zebra near a tree"]
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in range(3)}
    images = [{"id": number, "file_name": name, "height": 40, "width": 60} for number, name in names.items()]
    annotations = [
        {"id": number, "image_id": number, "segmentation": rle(box_mask(4 + number, 4, 30, 20))} for number in names
    ]
    home = root / "region_caption/refcocog"
    write_json(home / "finetune_refcocog_val_with_mask.json", {"images": images, "annotations": annotations})
    told = [{"image_id": number, "caption": text} for number, text in enumerate(texts)]
    write_json(root / "mdetr_annotations/finetune_refcocog_val_captions.json", {"annotations": told})
    for name in names.values():
        write_image(root / COCO / name)
    return root


_SPLITS = {
    "refcoco": ("val", "testA", "testB", "test"),
    "refcoco+": ("val", "testA", "testB", "test"),
    "refcocog": ("val", "test"),
    "grefcoco": ("val", "testA", "testB"),
}
_VALID = "mevis/valid/meta_expressions.json", "mevis/valid/JPEGImages"
_TEST = "mevis/test/meta_expressions_release.json", "mevis/test/JPEGImages"
_YTVOS = "rvos/meta_expressions/valid/meta_expressions.json", "rvos/valid/JPEGImages"

FIXTURES: dict[str, Callable[[Path], Path]] = {
    **{
        f"{variant}_{split}": partial(refs, variant=variant, split=split)
        for variant, splits in _SPLITS.items()
        for split in splits
    },
    **{
        f"{variant}_val_upstream": partial(refs, variant=variant, split="val")
        for variant in ("refcoco", "refcoco+", "refcocog")
    },
    **{f"reasonseg_{split}": partial(reason, split=split) for split in ("val", "test")},
    "mevis_u": mevis,
    **{
        name: partial(hidden, file=file, frames=frames)
        for name, (file, frames) in {"mevis_valid": _VALID, "mevis_test": _TEST, "ref_ytvos_valid": _YTVOS}.items()
    },
    "davis17_expr": davis,
    "davis17_official": partial(davis, palettes=True),
    "revos": revos,
    "ref_sav": ref_sav,
    **{f"gcg_{split}{kind}": partial(grounded, split=split) for split in ("val", "test") for kind in ("", "_upstream")},
    **{f"region_caption{kind}": regions for kind in ("", "_upstream")},
}


def media_of(sample):
    return next(part for message in sample.messages for part in message.parts if isinstance(part, Media))


def perfect(sample) -> Answer:
    """The answer that no score can find fault with."""
    if sample.task == "caption":
        text = sample.target["references"][0]
        for label in sample.target["labels"]:
            text = text.replace(label, f"<p> {label} </p> [SEG]")
        size = media_of(sample).size
        masks = [
            Region(masks=MaskTrack(size, np.zeros(1, np.int64), (one["counts"],))) for one in sample.target["masks"]
        ]
        return Answer(sample.target["references"][0], tuple(masks), text + "<|im_end|>")
    return Answer(sample.messages[-1].text, sample.regions)
