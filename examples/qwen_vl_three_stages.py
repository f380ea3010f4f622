"""Qwen-VL's three stages on drawn scenes and pages, on a CPU: captions, then places and words, then dialogues.

    python examples/qwen_vl_three_stages.py OUT [--share 1.0]

A tiny Qwen-VL begins with weights of chance. Its language model reads captions without pictures first, in place of the
Qwen-7B that the real one began with. Then `recipes/qwen_vl_1.yaml`, `_2` and `_3` follow: what learns, schedules and
decays stay as they are; sizes, rates and numbers of steps are this model's. After every few steps the model is asked
about scenes and pages that it has never seen. The figures are in OUT/figures.json, their curves in OUT/curves.svg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from segue import loading, weights
from segue.checkpoints import adapters, model_folder
from segue.cli.main import main as command_line
from segue.data.pretraining import CAPTION, OCR
from segue.engine import Engine
from segue.geometry import boxes, qwen_notation
from segue.grounding.model import VisionLanguageConfig, build
from segue.media import open_media
from segue.models.qwen_vl.known import KNOWN
from segue.models.qwen_vl.model import QwenVLConfig, QwenVLMLLM
from segue.models.qwen_vl.tokenizer import SPECIAL_TOKENS
from segue.models.qwen_vl.vision import grid_positions
from segue.options import Options
from segue.synth.backgrounds import Background, paint_background
from segue.synth.pages import Writing, page
from segue.synth.painting import Look, Pose, paint
from segue.synth.scenes import Split, generator
from segue.train.from_scratch.model import randomise, train_tokenizer
from segue.types import Answer, Media, Message, Region

RECIPES = Path(__file__).parents[1] / "recipes"
SIDE, PATCH, GRID = 64, 8, 4
"""Sides of a picture and of a patch in pixels, and of the grid of cells that things stand on: a cell is a patch in the
first stage, four patches in the others, and a visual token in all."""
CELL = SIDE // GRID
COLOURS = ("red", "green", "blue")
KINDS = ("circle", "square", "cross")
WRITING = Writing(
    most_lines=1, most_words=1, words="tea egg oil jam milk rice salt corn", least_height=0.35, most_height=0.35
)
DESCRIBE, WHERE, READ = "What is there?", "Where is the {}?", "What is written?"
STAGES = {"language": 400, "captions": 160, "tasks": 2700, "dialogues": 800}
"""Steps of each stage; the first is the language model alone."""
POINTS = {"captions": 1, "tasks": 3, "dialogues": 2}
"""How often the model is asked in each stage."""
SCENES, PAGES, HELD_OUT, TESTED = 5000, 1600, 128, 512
"""Drawn to learn from, and of each to be judged by."""
FIGURES = ("captions", "boxes", "words read", "closed questions")


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture of one or two things, from left to right: colour and kind of each, and its box in pixels."""

    pixels: np.ndarray
    things: tuple[tuple[str, str], ...]
    places: np.ndarray

    @property
    def names(self) -> list[str]:
        """The things as "red circle"."""
        return [" ".join(thing) for thing in self.things]

    @property
    def caption(self) -> str:
        """All that is there."""
        return " and ".join(f"a {name}" for name in self.names)


@cache
def scene(split: Split, index: int) -> Scene:
    """Scene number `index` of a split: plain things, no two alike, one or two cells wide, on a plain ground."""
    rng = generator("tiny", split, 0, index)
    count = 1 + int(rng.uniform() < 0.75)
    while True:
        things = [(str(rng.choice(COLOURS)), str(rng.choice(KINDS))) for _ in range(count)]
        widths = rng.integers(1, 3, count)
        corners = np.array([rng.integers(0, GRID - width + 1, 2) for width in widths])
        places = np.concatenate([corners, corners + widths[:, None]], 1).astype(float) * CELL
        order = np.lexsort(places[:, 1::-1].T)
        if len(set(things)) == count and not np.triu(boxes.iou(places, places), 1).any():
            break
    things, places = [things[one] for one in order], places[order]
    looks = [Look(kind, colour, "plain") for colour, kind in things]
    poses = [Pose((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0) for x0, y0, x1, y1 in places]
    ground = paint_background(Background("plain", ((int(rng.integers(200, 240)),) * 3,)), (SIDE, SIDE), rng)
    return Scene(paint(ground, looks, poses).pixels, tuple(things), places)


@cache
def written(split: Split, index: int) -> tuple[np.ndarray, Region]:
    """A page with one word, dark on light, moved so that it begins on the edges of patches; and the word's place."""
    drawn = page(0, index, split=split, size=(SIDE, SIDE), writing=WRITING)
    line = drawn.lines[0]
    assert line.quad is not None
    colours = drawn.pixels.astype(float)
    ink = np.abs(colours - np.median(colours, (0, 1))).max(-1)
    left, top = line.quad.min(0).astype(int) % PATCH
    grey = np.roll(255 - ink / ink.max() * 255, (-top, -left), (0, 1)).astype(np.uint8)
    # in whole patches: what lies between is beyond such a model, and would be most of what it is corrected for
    quad = np.round((line.quad - (left, top)) / PATCH) * PATCH
    return np.stack([grey] * 3, -1), Region(phrase=line.phrase, quad=quad)


def closed(shown: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question with one right word, and the word. Yes and no are as frequent; half of what is not there is nearly."""
    choice, things = int(rng.integers(4)), shown.things
    colour, kind = things[int(rng.integers(len(things)))]
    if choice == 1 and [one for _, one in things].count(kind) == 1:
        return f"What colour is the {kind}?", colour
    if choice == 2 and [one for one, _ in things].count(colour) == 1:
        return f"What shape is the {colour} thing?", kind
    if choice == 3:
        return "How many things are there?", ("one", "two")[len(things) - 1]
    if rng.uniform() < 0.5:
        return f"Is there a {colour} {kind}?", "yes"
    absent = [(one, other) for one in COLOURS for other in KINDS if (one, other) not in things]
    near = [one for one in absent if (one[0] == colour) != (one[1] == kind)]
    among = (near, absent)[int(rng.integers(2))]
    return f"Is there a {' '.join(among[int(rng.integers(len(among)))])}?", "no"


def records(folder: Path, *, scenes: int, pages: int) -> None:
    """Write what the stages learn from: pictures, the seven tasks, texts, and dialogues."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    captions, tasks, texts, dialogues = [], [], [], []
    for index in range(scenes):
        shown, image = scene("train", index), f"pictures/{index}.png"
        Image.fromarray(shown.pixels).save(folder / image)
        captions.append({"task": "caption", "image": image, "text": shown.caption})
        tasks += [*scene_tasks(shown, image, rng), captions[-1]]
        # what a language model knows before it sees: to say again what it was told, words and numbers, and how
        # questions are answered
        told = " ".join(rng.permutation([word for name in shown.names for word in name.split()]))
        questions = " ".join(f"{question} Answer: {word}" for question, word in (closed(shown, rng) for _ in range(4)))
        texts.append({"task": "text", "text": f"{told} {CAPTION.format(language='English')} {shown.caption}"})
        texts.append({"task": "text", "text": f"{shown.caption} {questions}"})
        listed, asked = list(zip(shown.names, numbers(shown), strict=True)), int(rng.integers(len(shown.names)))
        known = " ".join(rng.permutation([f"{name} {place}" for name, place in listed]))
        texts.append({"task": "text", "text": f"{known} {WHERE.format(listed[asked][0])} {listed[asked][1]}"})
        dialogues.append(dialogue(shown, image, rng))
    for index in range(pages):
        (pixels, line), image = written("train", index), f"pictures/page-{index}.png"
        Image.fromarray(pixels).save(folder / image)
        lines = [{"text": line.phrase, "quad": line.quad.tolist()}]
        tasks.append({"task": "ocr", "image": image, "lines": lines})
        dialogues.append({"conversations": turns(image, [(READ, line.phrase)])})
    for name, rows in (("captions", captions), ("tasks", [*tasks, *texts[: scenes // 4]]), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "conversations.json").write_text(json.dumps(dialogues), encoding="utf-8")


def numbers(shown: Scene) -> list[str]:
    """Where the things are, without the marks around it."""
    places = [qwen_notation.place_text(Region(box=place), (SIDE, SIDE)) for place in shown.places]
    return [place.removeprefix("<box>").removesuffix("</box>") for place in places]


def scene_tasks(shown: Scene, image: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The tasks of the second stage that a scene is good for."""
    size = (SIDE, SIDE)
    marked = [
        qwen_notation.region_text(f"a {name}", [Region(box=box)], size)
        for name, box in zip(shown.names, shown.places, strict=True)
    ]
    yield {"task": "grounded_caption", "image": image, "text": " and ".join(marked)}
    for name, box in zip(shown.names, shown.places.tolist(), strict=True):
        yield {"task": "refer", "image": image, "phrase": f"the {name}", "boxes": [box]}
    number = int(rng.integers(len(shown.names)))
    box = shown.places[number].tolist()
    yield {"task": "describe_region", "image": image, "box": box, "text": f"a {shown.names[number]}"}
    for question, word in (closed(shown, rng) for _ in range(2)):
        yield {"task": "vqa", "image": image, "question": question, "answer": word}


def dialogue(shown: Scene, image: str, rng: np.random.Generator) -> dict[str, Any]:
    """Questions about a scene in an order by chance: closed ones, where a thing is, of every third what there is."""
    number = int(rng.integers(len(shown.names)))
    place = qwen_notation.region_text("", [Region(box=shown.places[number])], (SIDE, SIDE))
    asked = [*(closed(shown, rng) for _ in range(3)), (WHERE.format(shown.names[number]), place)]
    if rng.uniform() < 0.3:
        asked.append((DESCRIBE, shown.caption))
    return {"conversations": turns(image, [asked[one] for one in rng.permutation(len(asked))])}


def turns(image: str, asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and answers about a picture as `qwen_chat` reads them."""
    said = [text for pair in asked for text in pair]
    said[0] = f"Picture 1: <img>{image}</img>\n{said[0]}"
    return [{"from": ("user", "assistant")[number % 2], "value": text} for number, text in enumerate(said)]


def begin(folder: Path, texts: Path) -> None:
    """Write the model that is taught, with weights of chance."""
    lines = [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines()]
    lines += [*WRITING.words.split(), OCR, DESCRIBE, READ, WHERE, "<box>(125,624),(0,999)</box>"]
    tokenizer = train_tokenizer(lines, 600, SPECIAL_TOKENS)
    start = tokenizer.token_to_id("<img>")
    vision = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 192,
        "output_width": 128,
        "num_queries": GRID**2,
        "grid": GRID,
    }
    text = {"num_hidden_layers": 3, "intermediate_size": 256, "vocab_size": tokenizer.get_vocab_size()}
    tiny = KNOWN["tiny-qwen-vl"].config["text_config"]
    mllm = QwenVLConfig(vision_config=vision, text_config=tiny | text, image_start_id=start)
    config = VisionLanguageConfig(family="qwen_vl", mllm_config=mllm, sam2_config=None, template="qwen_vl_raw")
    with torch.random.fork_rng(devices=[]):
        model = build(config, dtype=torch.float32, device="cpu")
    randomise(dict(model.named_parameters()), 0)
    look_there(model.mllm)

    def also(part: Path) -> None:
        tokenizer.save(str(part / "tokenizer.json"))
        named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        (part / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
        weights.write_lineage(part, {"random": True, "seed": 0})

    model_folder.save(model, folder, also=also)


@torch.no_grad()
def look_there(mllm: QwenVLMLLM) -> None:
    """Let the places of patches be told from the start, and each query of the resampler look at those of its own cell;
    both may be unlearned.

    With weights of chance places are faint beside what is there, and which queries are near which patches has to be
    found out. Here some channels of the keys are those of places alone, and queries read nothing else at first.
    """
    tower, resampler = mllm.vision_tower, mllm.connector.resampler
    tower.positions.copy_(1.5 * grid_positions(GRID, tower.positions.shape[1]))
    quarter = resampler.positions.shape[1] // 4
    fast = (10000.0 ** (-torch.arange(quarter) / quarter) > 0.2).repeat(4)
    for projection in (resampler.attention.q_proj, resampler.attention.k_proj):
        projection.weight.copy_(torch.diag(5.0 * fast))
    resampler.project.weight[fast] = 0
    resampler.query.zero_()


def teach(out: Path, name: str, base: Path, steps: int, *changes: str) -> None:
    """One stage by its recipe, with changes; where the run was begun it goes on."""
    recipe = RECIPES / f"qwen_vl_{('language', 'captions', 'tasks', 'dialogues').index(name) or 2}.yaml"
    sets = {
        "model": base,
        "accumulation": 1,
        "workers": 0,
        "precision": "fp32",
        "gradient_checkpointing": "false",
        "log_every": min(25, max(1, steps // 4)),
        "save_every": -(-steps // POINTS.get(name, 1)),
        "keep": 100,
        "stages.0.optimizer": "muon",
        "stages.0.steps": steps,
    }
    words = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    words += [part for one in changes for part in ("--set", one)]
    goes_on = ["--resume"] if (out / name / "recipe.yaml").exists() else []
    do("train", recipe, "--device", "cpu", "--output", out / name, *words, *goes_on)


def do(*words: object) -> None:
    """Run a command of Segue's as on the command line; where it fails or is stopped, so does this."""
    told = [str(word) for word in words]
    print(f"\n$ segue {' '.join(told)}", flush=True)
    try:
        command_line(told)
    except SystemExit as end:
        if end.code:
            raise


def figures(engine: Engine, split: Split, count: int, *, chats: bool) -> dict[str, float]:
    """How well a model does on so many scenes and pages of a split, each figure a share from 0 to 1.

    Base models continue the texts of their tasks, chat models are asked in words.
    """
    rng = np.random.default_rng(1)
    scenes = [scene(split, index) for index in range(count)]
    pages = [written(split, index) for index in range(count)]
    shown = [open_media(one.pixels) for one in scenes]
    targets = [int(rng.integers(len(one.names))) for one in scenes]
    questions = [closed(one, rng) for one in scenes]
    names = [one.names[target] for one, target in zip(scenes, targets, strict=True)]
    caption = DESCRIBE if chats else CAPTION.format(language="English")
    phrases: list[str | Region] = [WHERE.format(name) if chats else Region(phrase=f"the {name}") for name in names]
    words = [question if chats else f" {question} Answer:" for question, _ in questions]
    found = ask(engine, shown, phrases)
    hits = [
        bool(answer.regions) and box_of(answer.regions[0], one.places[target])
        for answer, one, target in zip(found, scenes, targets, strict=True)
    ]
    media = [open_media(pixels) for pixels, _ in pages]
    said = {
        "captions": (ask(engine, shown, [caption] * count), [one.caption for one in scenes]),
        "words read": (ask(engine, media, [READ if chats else OCR] * count), [line.phrase for _, line in pages]),
        "closed questions": (ask(engine, shown, words), [word for _, word in questions]),
    }
    right = {
        name: [answer.text.strip() == truth for answer, truth in zip(answers, truths, strict=True)]
        for name, (answers, truths) in said.items()
    }
    return {name: float(np.mean((right | {"boxes": hits})[name])) for name in FIGURES}


def test(run: Path, *, chats: bool) -> dict[str, float]:
    """The figures at the end of a stage on scenes and pages that no choice was made by."""
    folder = list(adapters.checkpoints(run))[-1]
    found = figures(loading.load(folder, device="cpu", dtype="fp32"), "test", TESTED, chats=chats)
    tell(f"{run.name:10} test", found)
    return found


def tell(what: str, found: Mapping[str, float]) -> None:
    """Print figures."""
    print(f"{what:22}  " + "  ".join(f"{key} {share:.2f}" for key, share in found.items()))


def box_of(region: Region, truth: np.ndarray) -> bool:
    """Whether a region's box shares at least half with the true one."""
    return region.box is not None and float(boxes.iou(region.box[None], truth[None])[0, 0]) >= 0.5


def ask(engine: Engine, shown: Sequence[Media], asked: Sequence[str | Region]) -> list[Answer]:
    """Short answers to a question about each picture."""
    dialogues = [[Message("user", (media, question))] for media, question in zip(shown, asked, strict=True)]
    return engine.answer_all(dialogues, Options(max_new_tokens=40), rows=HELD_OUT)


def chance() -> float:
    """How often the box of a thing in another scene would be right."""
    scenes = [scene("validation", index) for index in range(HELD_OUT)]
    pairs = zip(scenes, [*scenes[1:], scenes[0]], strict=True)
    return float(np.mean([box_of(Region(box=other.places[0]), one.places[0]) for one, other in pairs]))


def curves(points: Sequence[Mapping[str, Any]], ends: Mapping[str, int]) -> str:
    """The figures over all steps as an SVG, with a line where a stage ends."""
    width, height, left, top = 720, 300, 40, 50
    last = max(ends.values())
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = height - 30 - share * (height - 30 - top)
        parts.append(
            f'<path d="M{left} {y:.0f}H{width - 10}" stroke="#ddd"/><text x="5" y="{y + 4:.0f}">{share}</text>'
        )
    begun = 0
    for stage, end in ends.items():
        x0, x1 = (left + at / last * (width - left - 10) for at in (begun, end))
        parts.append(f'<path d="M{x1:.0f} {top}V{height - 30}" stroke="#999" stroke-dasharray="3"/>')
        parts.append(f'<text x="{(x0 + x1) / 2:.0f}" y="{height - 10}" text-anchor="middle">{stage}</text>')
        begun = end
    for number, (name, colour) in enumerate(zip(FIGURES, ("#1490ff", "#d9730d", "#c4127a", "#4b8b00"), strict=True)):
        places = [
            f"{left + one['step'] / last * (width - left - 10):.1f},{height - 30 - one[name] * (height - 30 - top):.1f}"
            for one in points
        ]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(places)}"/>')
        parts.append(f'<text x="{left + number * 160}" y="25" fill="{colour}">{name}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
    return f'{head}font-size="12" fill="#222">{"".join(parts)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps and of the data")
    settings = parser.parse_args()
    out, since = settings.out, perf_counter()
    data = out / "data"
    steps = {name: max(4, round(count * settings.share)) for name, count in STAGES.items()}
    if not (out / "start").exists():
        records(data, scenes=max(8, round(SCENES * settings.share)), pages=max(4, round(PAGES * settings.share)))
        begin(out / "start", data / "texts.jsonl")
    rows = {
        name: f"data=[{{dataset: pretraining, root: {data}, options: {{file: {name}.jsonl}}}}]"
        for name in ("texts", "captions", "tasks")
    }
    talks = f"data=[{{dataset: qwen_chat, root: {data}}}]"
    language = "stages.0.groups={language: {how: full}, embeddings: {how: full}}"
    small, large = f"image_side={SIDE // 2}", f"image_side={SIDE}"
    fast, slow, many, few = "stages.0.rate=2e-3", "stages.0.rate=1e-3", "batch=32", "batch=16"
    teach(out, "language", out / "start", steps["language"], rows["texts"], large, fast, many, language)
    teach(out, "captions", out / "language", steps["captions"], rows["captions"], small, fast, many)
    teach(out, "tasks", out / "captions", steps["tasks"], rows["tasks"], large, fast, few)
    teach(out, "dialogues", out / "tasks", steps["dialogues"], talks, large, slow, few)
    points: list[dict[str, Any]] = []
    ends, before = {}, 0
    for name in POINTS:
        for folder, record in adapters.checkpoints(out / name).items():
            engine = loading.load(folder, device="cpu", dtype="fp32")
            found = figures(engine, "validation", HELD_OUT, chats=name == "dialogues")
            points.append({"stage": name, "step": before + record.step, **found})
            tell(f"{name:10} step {record.step:5}", found)
        before += steps[name]
        ends[name] = before
    minutes = round((perf_counter() - since) / 60, 1)
    tested = {name: test(out / name, chats=name == "dialogues") for name in ("tasks", "dialogues")}
    told = {"boxes by chance": chance(), "minutes": minutes, "points": points, "test": tested}
    (out / "figures.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (out / "curves.svg").write_text(curves(points, ends), encoding="utf-8")


if __name__ == "__main__":
    main()
