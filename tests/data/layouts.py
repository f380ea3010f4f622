"""Tiny folders in the layouts of the official datasets: made-up images, and masks known by formula."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from segue.geometry import masks

SIZE = (40, 60)
SQUARE = [10, 5, 30, 5, 30, 25, 10, 25]
OVERLAPPING = [SQUARE, [20, 15, 40, 15, 40, 35, 20, 35]]
UNION = 20 * 20 + 20 * 20 - 10 * 10


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_pickle(path: Path, content, protocol=2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_image(path: Path, size=SIZE, seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows * 3, columns * 2, np.full(size, 20 * seed % 256)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_frames(folder: Path, count=8, size=SIZE, first=0, step=1) -> Path:
    for number in range(count):
        write_image(folder / f"{first + step * number:05d}.jpg", size, number)
    return folder


def write_mask(path: Path, values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)
    return path


def box_mask(left, top, width, height, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def rle(mask) -> dict:
    return {"size": list(mask.shape), "counts": masks.encode(mask)}


def runs(mask) -> dict:
    """The same with counts as a list."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def areas(sample) -> list[int]:
    """Pixels of every region on its first frame."""
    return [int(region.masks.dense(0).sum()) for region in sample.regions]


def questions(sample) -> list[str]:
    return [message.text.strip() for message in sample.messages if message.role == "user"]


def answers(sample) -> list[str]:
    return [message.text for message in sample.messages if message.role == "assistant"]


def refcoco(root: Path, variant="refcoco", pickled=True) -> Path:
    """Two training images, one of them with three referents, and one image in each other split."""
    home = root / "ref_seg" / variant
    annotations = [
        {"id": 9000 + n, "image_id": 101 + n // 3, "iscrowd": 0, "segmentation": polygons}
        for n, polygons in enumerate([[SQUARE], OVERLAPPING, [[40, 5, 55, 5, 55, 20]], [SQUARE], [SQUARE], [SQUARE]])
    ]
    annotations[4]["image_id"], annotations[5]["image_id"] = 103, 104
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in (101, 102, 103, 104)}
    images = [{"id": number, "file_name": name, "height": 40, "width": 60} for number, name in names.items()]
    write_json(home / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    splits = ["train", "train", "train", "train", "val", "testA"]
    refs = [
        {
            "ref_id": n,
            "ann_id": [annotation["id"]] if variant == "grefcoco" else annotation["id"],
            "image_id": annotation["image_id"],
            "split": split,
            "sentences": [{"raw": f"Thing {n}.", "sent": f"thing {n}"}, {"raw": f"Object {n}", "sent": f"object {n}"}],
        }
        for n, (annotation, split) in enumerate(zip(annotations, splits, strict=True))
    ]
    if variant == "grefcoco":
        refs[1]["ann_id"] = [9001, 9002]
        refs[3]["ann_id"] = [-1]
    stem = {"refcocog": "refs(umd)", "grefcoco": "grefs(unc)"}.get(variant, "refs(unc)")
    if pickled:
        write_pickle(home / f"{stem}.p", refs)
    else:
        write_json(home / f"{stem}.json", refs)
    for name in names.values():
        write_image(root / "glamm_data/images/coco2014/train2014" / name)
    return root


def video_expressions(root: Path, variant="mevis") -> Path:
    """One video of eight frames with a box that moves right, and with one that is there on the first frame only."""
    moving = [rle(box_mask(2 * frame, 10, 12, 12)) for frame in range(8)]
    brief = [rle(box_mask(40, 20, 10, 10)), *[None] * 7]
    frames = [f"{number:05d}" for number in range(8)]
    home = root / "video_datas"
    if variant == "mevis":
        expressions = {
            "0": {"exp": "The box moving right.", "anno_id": [41]},
            "1": {"exp": "Which things are there at first?", "anno_id": [41, 42]},
            "2": {"exp": "the cat", "anno_id": []},
        }
        write_json(home / "mevis/train/mask_dict.json", {"41": moving, "42": brief})
        write_json(home / "mevis/train/meta_expressions.json", _videos({"b": (frames, expressions)}))
        write_frames(home / "mevis/train/JPEGImages/b")
        return root
    texts = {str(number): {"exp": f"expression {number}"} for number in (0, 1, 2, 10)}
    videos = {"b": (frames, {"0": {"exp": "moving"}, "1": {"exp": "brief"}}), "a": (frames, texts)}
    tracks = {"0": moving, "1": brief, **{str(2 + n): [rle(box_mask(0, 0, 2, 2 + n))] * 8 for n in range(4)}}
    write_pickle(home / "rvos/mask_dict.pkl", tracks, protocol=4)
    write_json(home / "rvos/meta_expressions/train/meta_expressions.json", _videos(videos))
    for name in "ab":
        write_frames(home / "rvos/train/JPEGImages" / name)
    return root


def _videos(videos) -> dict:
    return {
        "videos": {
            name: {"frames": frames[::-1], "expressions": expressions} for name, (frames, expressions) in videos.items()
        }
    }
