"""Mutated files through the command line, each in a process of its own with limits; prints what went wrong.

python fuzz.py SECONDS [SEED]: changes pictures, clips, weights, pickles, tokenizers, recipes and data folders
and runs a command on each. A signal, a traceback, an exit code other than 0 and 2, more than 30 CPU seconds or more
than 4 GiB is a fault: the changed file is kept in segue-out/fuzz, and the exit code is 1. Children are forked, because
starting Python takes longer than most of what they do.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

CPU_SECONDS, MOST_BYTES = 30, 4 << 30
KEPT = Path("segue-out/fuzz")
Seed = tuple[str, Callable[[Path], None], list[str]]
"""A file to mutate, what writes it and all that it needs into a folder, and the command; {} is the folder."""


def picture(form: str, **options: object) -> Callable[[Path], None]:
    """Writes a small picture or animation."""

    def write(folder: Path) -> None:
        rows, columns = np.mgrid[:48, :64]
        pixels = np.stack([rows * 5, columns * 4, rows + columns], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "file", form, **options)

    return write


def moving(form: str) -> Callable[[Path], None]:
    """Writes a small animation."""
    frames = [Image.new("RGB", (32, 24), (80 * number, 10, 10)) for number in range(3)]
    return picture_of(lambda path: frames[0].save(path, form, save_all=True, append_images=frames[1:]))


def picture_of(save: Callable[[Path], None]) -> Callable[[Path], None]:
    """Writes the file that `save` writes."""
    return lambda folder: save(folder / "file")


def clip(folder: Path) -> None:
    """Writes a clip of eight frames."""
    from segue.output.export import OverlayWriter

    with OverlayWriter(folder / "clip.mp4", 10, (48, 64)) as writer:
        for number in range(8):
            writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    (folder / "clip.mp4").rename(folder / "file")


def pickle(folder: Path) -> None:
    """Writes a checkpoint as torch does, in its least form."""
    import torch

    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(3, 4)}}, buffer)
    (folder / "file").write_bytes(buffer.getvalue())


def archive(folder: Path) -> None:
    """Writes the pickle alone into an archive, so that its instructions are what is changed."""
    pickle(folder)
    with zipfile.ZipFile(folder / "file") as whole:
        data = whole.read(next(name for name in whole.namelist() if name.endswith("data.pkl")))
    with zipfile.ZipFile(folder / "file", "w") as made:
        made.writestr("a/data.pkl", data)


def model(name: str) -> Callable[[Path], None]:
    """Writes a model folder, one file of which is changed."""

    def write(folder: Path) -> None:
        from segue.checkpoints.random_weights import random_checkpoint

        made = random_checkpoint(folder / "model")
        if not (made / name).exists():
            raise FileNotFoundError(f"the model has no {name}; it has {sorted(path.name for path in made.iterdir())}")

    return write


def data(folder: Path) -> None:
    """Writes a folder of images and COCO annotations."""
    (folder / "images").mkdir()
    Image.new("RGB", (32, 24)).save(folder / "images" / "0.png")
    record = {
        "images": [{"id": 0, "file_name": "0.png", "width": 32, "height": 24}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
    }
    (folder / "annotations.json").write_text(json.dumps(record))


def marked(image: str, **files: object) -> Callable[[Path], None]:
    """Writes an image and the files of another tool that speak of it, by their paths with `__` for `/`, `_` for `.`."""

    def write(folder: Path) -> None:
        written = {image: Image.new("RGB", (32, 24))}
        written |= {name.replace("__", "/").replace("_", "."): content for name, content in files.items()}
        for name, content in written.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Image.Image):
                content.save(folder / name)
            else:
                (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))

    return write


def recipe(folder: Path) -> None:
    """Writes a recipe that names nothing that is there."""
    stage = "stages: [{name: a, steps: 1, train: [lora], rate: 1e-4}]"
    (folder / "file").write_text(
        f"base: demo\noutput: {folder}/run\ndata: [{{dataset: folder, root: x, split: train}}]\n{stage}\n"
    )


POLYGON = [[1, 1], [9, 1], [9, 9]]
LABELME = {
    "imagePath": "0.png",
    "imageHeight": 24,
    "imageWidth": 32,
    "shapes": [{"label": "square", "points": POLYGON, "shape_type": "polygon"}],
}
VIA = {
    "0": {
        "filename": "0.png",
        "regions": [
            {
                "shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]},
                "region_attributes": {"name": "square"},
            }
        ],
    }
}
SUPERVISELY = {
    "size": {"height": 24, "width": 32},
    "tags": [{"name": "train"}],
    "objects": [{"classTitle": "square", "geometryType": "polygon", "points": {"exterior": POLYGON, "interior": []}}],
}
STUDIO = [
    {
        "id": 0,
        "data": {"image": "0.png"},
        "annotations": [
            {
                "id": 1,
                "result": [
                    {
                        "type": "polygonlabels",
                        "original_width": 32,
                        "original_height": 24,
                        "value": {"points": [[5, 5], [50, 5], [50, 50]], "polygonlabels": ["square"]},
                    }
                ],
            }
        ],
    }
]
CVAT = (
    '<annotations><image id="0" name="0.png" width="32" height="24"><polygon label="square" points="1,1;9,1;9,9"/>'
    '<mask label="dot" rle="3, 3, 3" left="2" top="2" width="3" height="3"/></image></annotations>'
)
CLASSES = marked("JPEGImages/0.png", SegmentationClass__0_png=Image.new("L", (32, 24), 3))
LABELS = marked("images/0.png", labels__0_txt="0 .1 .1 .5 .1 .5 .5\n", data_yaml="names: {0: square}\n")
DOCTOR = ["doctor", "{}", "-o", "{}/out"]
LOOK = ["segment", "{}/file", "a star", "-o", "{}/out", "--prefill", "It is [SEG]."]
SEEDS: dict[str, Seed] = {
    **{form: ("file", picture(form), LOOK) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")},
    **{f"moving {form}": ("file", moving(form), LOOK) for form in ("GIF", "PNG", "WEBP", "TIFF")},
    "deflated TIFF": ("file", picture("TIFF", compression="tiff_adobe_deflate"), LOOK),
    "clip": ("file", clip, LOOK),
    "pth": ("file", pickle, ["convert", "import", "{}/file", "{}/out", "--base", "demo"]),
    "pickle": ("file", archive, ["convert", "import", "{}/file", "{}/out", "--base", "demo"]),
    "weights": ("model/model.safetensors", model("model.safetensors"), ["inspect", "{}/model"]),
    "config": ("model/config.json", model("config.json"), ["inspect", "{}/model"]),
    "tokenizer": ("model/tokenizer.json", model("tokenizer.json"), ["doctor", "{}/model"]),
    "annotations": ("annotations.json", data, DOCTOR),
    "image of data": ("images/0.png", data, DOCTOR),
    "LabelMe": ("0.json", marked("0.png", **{"0_json": LABELME}), DOCTOR),
    "VIA": ("via.json", marked("images/0.png", via_json=VIA), DOCTOR),
    "Supervisely": ("ann/0.png.json", marked("img/0.png", ann__0_png_json=SUPERVISELY), DOCTOR),
    "Label Studio": ("export.json", marked("images/0.png", export_json=STUDIO), DOCTOR),
    "CVAT": ("annotations.xml", marked("images/0.png", annotations_xml=CVAT), DOCTOR),
    "mask picture": (
        "masks/0.png",
        marked("images/0.png", masks__0_png=Image.new("L", (32, 24), 3)),
        [*DOCTOR, "--phrase", "dot"],
    ),
    "YOLO": ("labels/0.txt", LABELS, DOCTOR),
    "YOLO's names": ("data.yaml", LABELS, DOCTOR),
    "Pascal VOC": ("SegmentationClass/0.png", CLASSES, DOCTOR),
    "recipe": ("file", recipe, ["train", "{}/file", "--estimate"]),
}


ODD_NUMBERS = (b"0", b"-1", b"1e400", b"NaN", b"0.5", b'"1"', b"null", b"99999999999999999999")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, taken out, repeated, or put elsewhere; headers more often. Of what may be
    text, numbers are made odd ones.
    """
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(max(1, min(len(made), rng.choice((64, 512, len(made) or 1)))))
        kind = rng.randrange(6)
        if kind == 0 and made:
            made[place % len(made)] ^= 1 << rng.randrange(8)
        elif kind == 1 and made:
            made[place % len(made)] = rng.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del made[place : place + rng.choice((1, 4, 100))]
        elif kind == 3:
            made[place:place] = bytes(made[place : place + rng.choice((1, 8, 64))]) * rng.choice((1, 3))
        elif kind == 4 and (number := re.compile(rb"-?[0-9]+(?:\.[0-9]+)?").search(made, place)):
            made[number.start() : number.end()] = rng.choice(ODD_NUMBERS)
        else:
            made = made[: max(1, rng.randrange(len(made) + 1))]
    return bytes(made)


def run(arguments: list[str], log: Path) -> str:
    """What is wrong with how the command ended; empty, if nothing is."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        from segue.cli.main import main

        try:
            main(arguments)
        except SystemExit as leaving:
            os._exit(int(leaving.code or 0))
        except BaseException:  # noqa: BLE001  whatever it is, it is the fault that is looked for
            import traceback

            traceback.print_exc()
            os._exit(1)
    deadline = time.monotonic() + 10 * CPU_SECONDS
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return f"did not end within {10 * CPU_SECONDS} seconds"
        time.sleep(0.01)
    _, status, used = ended
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    if os.WEXITSTATUS(status) not in (0, 2):
        return f"exit code {os.WEXITSTATUS(status)}"
    if used.ru_maxrss * 1024 > MOST_BYTES:
        return f"{used.ru_maxrss / 1e6:.1f} GB"
    return "a traceback" if "Traceback (most recent call last)" in log.read_text(errors="replace") else ""


def main(seconds: float, seed: int) -> int:
    """Mutate and run until the time is up; how many faults there were."""
    rng, faults, runs = random.Random(seed), 0, 0
    end = time.monotonic() + seconds
    with TemporaryDirectory() as scratch:
        made: dict[str, Path] = {}
        for name, (_, write, _) in SEEDS.items():
            made[name] = Path(scratch) / name.replace(" ", "-")
            made[name].mkdir()
            write(made[name])
        while time.monotonic() < end:
            name = rng.choice(list(SEEDS))
            file, _, command = SEEDS[name]
            folder = Path(scratch) / "case"
            shutil.copytree(made[name], folder)
            (folder / file).write_bytes(mutated((folder / file).read_bytes(), rng))
            problem = run([word.replace("{}", str(folder)) for word in command], Path(scratch) / "log")
            runs += 1
            if problem:
                faults += 1
                target = KEPT / f"{name.replace(' ', '-')}-{seed}-{runs}"
                shutil.copytree(folder, target, dirs_exist_ok=True)
                shutil.copy(Path(scratch) / "log", target / "log")
                sys.stdout.write(f"{name}: {problem}; kept in {target}\n")
                sys.stdout.flush()
            shutil.rmtree(folder)
    sys.stdout.write(f"{runs} runs, {faults} faults, seed {seed}\n")
    return faults


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # threads do not outlive a fork
    import segue.checkpoints.convert
    import segue.checkpoints.inspection
    import segue.cli.doctor
    import segue.cli.segment
    import segue.evals.benchmarks
    import segue.loading  # noqa: F401  so that the children find imported what is imported late

    chosen = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
    sys.exit(1 if main(float(sys.argv[1]), chosen) else 0)
