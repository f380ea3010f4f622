"""Tiny folders in the official layouts of the benchmarks that are answered in words: `FIXTURES[name](root)` writes one.

Each has at least two rows with different truths, so that no constant answer is right everywhere.
"""

import base64
import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from layouts import write_frames, write_image, write_json

PEOPLE = [["yes"] * 10, ["2"] * 7 + ["two"] * 2 + ["3"]]
QUESTIONS = ["Is it green?", "How many {squares} are there?"]
ASPECTS = ("action", "direction")


def write_lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_table(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_cell(root: Path, seed=0) -> str:
    """An image as base64."""
    path = write_image(root / "cell.png", seed=seed)
    text = base64.b64encode(path.read_bytes()).decode()
    path.unlink()
    return text


def coco_questions(root: Path, home: str, prefix: str, part: str, *, hidden=False) -> Path:
    images = part.replace("-dev", "")
    questions = [{"question_id": 10 + n, "image_id": 1 + n, "question": text} for n, text in enumerate(QUESTIONS)]
    write_json(root / f"data/{home}/{prefix}OpenEnded_mscoco_{part}_questions.json", {"questions": questions})
    annotations = [
        {
            "question_id": 10 + n,
            "image_id": 1 + n,
            "answer_type": ("yes/no", "number")[n],
            "answers": [{"answer_id": place, "answer": answer} for place, answer in enumerate(people)],
        }
        for n, people in enumerate(PEOPLE)
    ]
    if not hidden:
        write_json(root / f"data/{home}/{prefix}mscoco_{part}_annotations.json", {"annotations": annotations})
    for n in (1, 2):
        write_image(root / f"data/coco/{images}/COCO_{images}_{n:012d}.jpg", seed=n)
    return root


def okvqa_shots(root: Path) -> Path:
    """With as many training questions as examples are asked for."""
    coco_questions(root, "okvqa", "", "val2014")
    home = root / "data/okvqa"
    questions = [{"question_id": n, "image_id": n, "question": f"Question {n}?"} for n in range(5)]
    annotations = [
        {"question_id": n, "image_id": n, "answers": [{"answer": f"a{n}"}, {"answer": f"b{n}"}, {"answer": f"b{n}"}]}
        for n in range(5)
    ]
    write_json(home / "OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    write_json(home / "mscoco_train2014_annotations.json", {"annotations": annotations})
    for n in range(5):
        write_image(root / f"data/coco/train2014/COCO_train2014_{n:012d}.jpg", seed=n)
    return root


def textvqa(root: Path) -> Path:
    rows = [
        {"question_id": n, "image_id": f"img{n}", "question": text, "answers": people}
        for n, (text, people) in enumerate(zip(QUESTIONS, PEOPLE, strict=True))
    ]
    write_json(root / "data/textvqa/TextVQA_0.5.1_val.json", {"data": rows})
    for n in range(2):
        write_image(root / f"data/textvqa/train_images/img{n}.jpg", seed=n)
    return root


def vizwiz(root: Path, split="val", count=2) -> Path:
    rows = [
        {
            "image": f"VizWiz_{split}_{n:08d}.jpg",
            "question": QUESTIONS[n % 2],
            **(
                {}
                if split == "test"
                else {"answers": [{"answer": one} for one in PEOPLE[n % 2]], "answer_type": "other"}
            ),
        }
        for n in range(count)
    ]
    write_json(root / f"data/vizwiz/Annotations/{split}.json", rows)
    for row in rows:
        write_image(root / f"data/vizwiz/{split}" / row["image"])
    return root


def vizwiz_shots(root: Path) -> Path:
    vizwiz(root, "train", 5)
    return vizwiz(root)


def docvqa(root: Path, split="val") -> Path:
    rows = [
        {
            "questionId": 50 + n,
            "question": text,
            "image": f"documents/page{n}.png",
            **({} if split == "test" else {"answers": [("New York", "new york city"), ("12.5",)][n]}),
        }
        for n, text in enumerate(QUESTIONS)
    ]
    write_json(root / f"data/docvqa/{split}/{split}_v1.0.json", {"data": rows})
    for n in range(2):
        write_image(root / f"data/docvqa/{split}/documents/page{n}.png", seed=n)
    return root


def lines(root: Path, file: str, *answers) -> Path:
    home = Path(file).parent
    rows = [
        {"image": f"{home}/images/{n}.jpg", "question": f"Question {n}?", "question_id": f"q{n}", "answer": answer}
        for n, answer in enumerate(answers)
    ]
    write_lines(root / file, rows)
    for n in range(len(answers)):
        write_image(root / home / f"images/{n}.jpg", seed=n)
    return root


def scienceqa(root: Path) -> Path:
    home = "data/scienceqa"
    rows = [
        {
            "image": f"{home}/images/test/{n}/image.png",
            "question": f"Which {n}?",
            "hint": hint,
            "choices": ["oak", "apple tree", "pine"],
            "answer": n,
        }
        for n, hint in enumerate(["", "Look at the leaves."])
    ]
    write_lines(root / home / "scienceqa_test_img.jsonl", rows)
    for n in range(2):
        write_image(root / home / f"images/test/{n}/image.png", seed=n)
    return root


def mmbench(root: Path, split="dev") -> Path:
    """Two questions, the first in three rotations of which the later ones name the row that has the image."""
    name = f"mmbench_{split}_20230712"
    options = ["red", "green", "blue"]
    rows = []
    for place, index in enumerate((3, 1_000_003, 2_000_003)):
        turned = options[place:] + options[:place]
        rows.append(
            {
                "index": index,
                "question": "Which colour?",
                "hint": "",
                **dict(zip("ABCD", [*turned, ""], strict=True)),
                "answer": "ABC"[turned.index("green")],
                "category": "colour",
                "image": "3" if place else as_cell(root),
            }
        )
    second = {"index": 4, "question": "Tabs\tand\nlines?", "hint": "A hint.", "A": "no", "B": "yes", "C": "", "D": ""}
    rows.append({**second, "answer": "B", "category": "form", "image": as_cell(root, 1)})
    if split == "test":
        rows = [{name: cell for name, cell in row.items() if name != "answer"} for row in rows]
    write_table(root / f"data/mmbench/{name}/{name}.tsv", rows)
    return root


def seed_bench(root: Path) -> Path:
    home = root / "data/seed_bench"
    kinds = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10, "Action Prediction": 11}
    questions = []
    for number, (dimension, data, segment) in enumerate(
        [(1, "one.jpg", None), (2, "two.jpg", None), (10, "a.webm", None), (12, "P/cam/b.avi", [1, 7])]
    ):
        choices = {f"choice_{letter}": f"thing {letter}" for letter in "abcd"}
        asked = {"question_id": f"v{number}" if dimension > 9 else str(number), "question": f"Which {number}?"}
        questions.append(
            {
                **asked,
                **choices,
                "answer": "BADC"[number],
                "data_id": data,
                "question_type_id": dimension,
                **({"segment": segment} if segment else {}),
            }
        )
    write_json(home / "SEED-Bench.json", {"questions": questions, "question_type": kinds})
    for name in ("one", "two"):
        write_image(home / f"SEED-Bench-image/{name}.jpg")
    write_frames(home / "SSV2/videos/a.webm", 9)
    write_frames(home / "BreakfastII_15fps_qvga_sync/P/cam/b.avi", 8)
    return root


def mme(root: Path) -> Path:
    """Both forms of a subtask's folder."""
    home = root / "data/mme/MME_Benchmark_release_version"
    for name, subtask, pictures, texts in (
        ("0001", "existence", "existence", "existence"),
        ("0002", "existence", "existence", "existence"),
        ("tt1", "artwork", "artwork/images/toy_dataset", "artwork/questions_answers_YN"),
        ("0001", "code_reasoning", "code_reasoning", "code_reasoning"),
    ):
        write_image(home / pictures / f"{name}.jpg")
        asked = f"Is there a {subtask}? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
        (home / texts).mkdir(parents=True, exist_ok=True)
        (home / texts / f"{name}.txt").write_text(asked, encoding="utf-8")
    return root


def boxes(root: Path, variant: str, split: str) -> Path:
    rows = [
        {"image": f"data/coco/train2014/{n}.jpg", "sent": f"thing {n}", "bbox": box, "width": 60, "height": 40}
        for n, box in enumerate([[6.0, 4.0, 30.0, 20.0], [31.5, 0.0, 60.0, 40.0]])
    ]
    write_lines(root / f"data/{variant}/{variant}_{split}.jsonl", rows)
    for n in range(2):
        write_image(root / f"data/coco/train2014/{n}.jpg", seed=n)
    return root


def captions(root: Path, file: str, field="image") -> Path:
    home = str(Path(file).parent)
    texts = [["a red square on a table", "red square"], ["two dogs run on the grass", "dogs running", "dogs on grass"]]
    names = [f"{home}/images/{n}.jpg" if field == "image" else f"{n}.jpg" for n in range(2)]
    images = [{"id": 7 + n, field: name} for n, name in enumerate(names)]
    annotations = [{"image_id": 7 + n, "caption": one} for n, written in enumerate(texts) for one in written]
    write_json(root / file, {"images": images, "annotations": annotations})
    for n in range(2):
        write_image(root / home / f"images/{n}.jpg", seed=n)
    return root


def touchstone(root: Path, file: str) -> Path:
    rows = [
        {
            "index": n,
            "image": as_cell(root, n),
            "question": f"What is {n}?",
            "human_annotation": "A square.\nIt is red.",
            "gpt4_ha_answer": f"A square {n}.",
            "category": ("recognition, comprehension", "recognition")[n],
            "task_name": "t",
        }
        for n in range(2)
    ]
    write_table(root / file, rows)
    return root


def clips(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        write_frames(folder / name, 6 + number)


def video_mme(root: Path) -> Path:
    home = root / "long_video/Video-MME"
    rows = [
        {
            "index": n,
            "video": f"v{n // 2}",
            "video_path": f"./video/v{n // 2}.mp4",
            "duration": ("short", "short", "long")[n],
            "domain": "Knowledge",
            "candidates": str(["A. Don't.", "B. Apples.", "C. Bees.", "D. Cups."]),
            "sub_category": "Law",
            "task_type": "Counting Problem",
            "subtitle_path": f"./subtitle/v{n // 2}.srt",
            "question": f"Which {n}?",
            "answer": ("A", "B", "D")[n],
        }
        for n in range(3)
    ]
    write_table(home / "Video-MME.tsv", rows)
    clips(home / "video", "v0.mp4", "v1.mp4")
    return root


def video_mme_subtitles(root: Path) -> Path:
    """One of the videos has a clock and subtitles, the other has neither."""
    from segue.media import open_media, read_frames
    from segue.output.export import OverlayWriter

    video_mme(root)
    home = root / "long_video/Video-MME"
    frames = read_frames(open_media(home / "video/v0.mp4"), range(6)).pixels
    for path in (home / "video/v0.mp4").iterdir():
        path.unlink()
    (home / "video/v0.mp4").rmdir()
    with OverlayWriter(home / "video/v0.mp4", 2, frames.shape[1:3]) as writer:
        for frame in frames:
            writer.write(frame)
    (home / "subtitle").mkdir()
    said = "1\n00:00:00,400 --> 00:00:01,200\nHello\nthere.\n\n2\n00:00:02,000 --> 00:01:00,000\nGood bye.\n"
    (home / "subtitle/v0.srt").write_text(said, encoding="utf-8")
    return root


def video_holmes(root: Path) -> Path:
    home = root / "long_video/Video-Holmes"
    rows = [
        {
            "video ID": f"h{n}",
            "Question ID": n,
            "Question Type": ("SR", "TA")[n],
            "Question": f"Who did {n}?",
            "Options": {letter: f"It's {letter.lower()} man {n}" for letter in "ABCDEF"},
            "Answer": "CF"[n],
            "Explanation": "So.",
        }
        for n in range(2)
    ]
    write_json(home / "test_Video-Holmes.json", rows)
    clips(home / "videos", "h0.mp4", "h1.mp4")
    return root


def tempcompass(root: Path) -> Path:
    """Every kind of question about both of two aspects."""
    home = root / "long_video/TempCompass"
    base = {"prefix": "./videos", "suffix": ".mp4"}
    choices = [
        {
            "task_type": "multi-choice",
            "question": f"What {aspect}?",
            "answer": "AB"[n] + ". " + ("cooking", "reading")[n],
            "candidates": str(["A. cooking", "B. reading"]),
        }
        for n, aspect in enumerate(ASPECTS)
    ]
    matched = [
        {
            "task_type": "caption_matching",
            "question": "Which caption is right?",
            "answer": ("Caption A: A man cooks.", "Option 2: A man reads.")[n],
            "candidates": str(
                [
                    ["Caption A: A man cooks.", "Caption B: A man reads."],
                    ["Option 1: A man cooks.", "Option 2: A man reads."],
                ][n]
            ),
        }
        for n in range(2)
    ]
    numbered = enumerate([*choices, *matched])
    rows = [{"index": n, "video": f"t{n % 2}", "dim": ASPECTS[n % 2], **base, **row} for n, row in numbered]
    write_table(home / "TempCompass_MCQ.tsv", rows)
    for name, extra in (
        ("YorN", lambda n: {"task_type": "yes_no", "question": "Is he cooking?", "answer": ("yes", "no")[n]}),
        (
            "Captioning",
            lambda n: {
                "task_type": "captioning",
                "question": "Describe it.",
                "answer": "A man.",
                "mc_question": "What is he doing?\nA. cooking\nB. reading",
                "mc_answer": ("A. cooking", "B. reading")[n],
            },
        ),
    ):
        rows = [{"index": n, "video": f"t{n}", "dim": ASPECTS[n], **base, **extra(n)} for n in range(2)]
        write_table(home / f"TempCompass_{name}.tsv", rows)
    clips(home / "videos", "t0.mp4", "t1.mp4")
    return root


def mlvu(root: Path) -> Path:
    home = root / "long_video/MLVU"
    tasks = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    for number, task in enumerate(tasks):
        row = {
            "video": "m.mp4",
            "duration": 9.5,
            "question": "What?",
            "candidates": ["one", "two", "three"],
            "answer": ("one", "three")[number % 2],
        }
        write_json(home / f"json/{task}.json", [row])
        clips(home / f"video/{task}", "m.mp4")
    for task in ("8_sub_scene", "9_summary"):
        row = {"video": "m.mp4", "duration": 9.5, "question": f"Tell {task}.", "answer": "A man cooks."}
        write_json(home / f"json/{task}.json", [row | ({"scoring_points": "cooks"} if task[0] == "8" else {})])
        clips(home / f"video/{task}", "m.mp4")
    return root


def video_mmmu(root: Path) -> Path:
    """One question of each category, and one that is open; the question of Adaptation has an image of its own."""
    home = root / "long_video/VideoMMMU"
    options = json.dumps(["10 m", "20 m", "30 m"])
    rows = [
        ("dev_Art_1", "Perception", "What is shown?", options, "B", "multiple-choice", ""),
        ("dev_Art_2", "Comprehension", "What follows?", options, "C", "multiple-choice", ""),
        ("dev_Art_3", "Adaptation", "See <image 1>. How far?", "[]", "12.5", "open", "images/1.png"),
    ]
    columns = ("id", "category", "question", "options", "answer", "question_type", "image")
    write_table(
        home / "VideoMMMU.tsv",
        [
            {"index": n, **dict(zip(columns, row, strict=True)), "video": f"videos/Art/{row[0]}.mp4"}
            for n, row in enumerate(rows)
        ],
    )
    clips(home / "videos/Art", *(f"{row[0]}.mp4" for row in rows))
    write_image(home / "images/1.png")
    return root


def mmbench_video(root: Path) -> Path:
    home = root / "long_video/MMBench-Video"
    rows = [
        {
            "index": n,
            "video": f"b{n}",
            "video_path": f"./video/b{n}.mp4",
            "video_type": "News",
            "question": f"Where is {n}?",
            "answer": "In the garden.",
            "dimensions": str([["OCR", "Counting"], ["Causal Reasoning"]][n]),
        }
        for n in range(2)
    ]
    write_table(home / "MMBench-Video.tsv", rows)
    clips(home / "video", "b0.mp4", "b1.mp4")
    return root


def longvideobench(root: Path) -> Path:
    home = root / "long_video/LongVideoBench"
    rows = [
        {
            "id": f"l{n}_0",
            "video_id": f"l{n}",
            "video_path": f"l{n}.mp4",
            "question": f"What comes at {n}?",
            "candidates": ["a cat", "a dog", "a cup", "a bee", "an ant"][: 4 + n],
            "correct_choice": (3, 4)[n],
            "duration_group": (15, 600)[n],
            "question_category": ("S2E", "T3O")[n],
            "subtitle_path": f"l{n}_en.json",
        }
        for n in range(2)
    ]
    write_json(home / "lvb_val.json", rows)
    clips(home / "videos", "l0.mp4", "l1.mp4")
    return root


FIXTURES: dict[str, Callable[[Path], Path]] = {
    "vqav2_val": partial(coco_questions, home="vqav2", prefix="v2_", part="val2014"),
    "vqav2_testdev": partial(coco_questions, home="vqav2", prefix="v2_", part="test-dev2015", hidden=True),
    "okvqa_val": partial(coco_questions, home="okvqa", prefix="", part="val2014"),
    "okvqa_val_4shot": okvqa_shots,
    "textvqa_val": textvqa,
    "vizwiz_val": vizwiz,
    "vizwiz_val_4shot": vizwiz_shots,
    "vizwiz_test": partial(vizwiz, split="test"),
    "docvqa_val": docvqa,
    "docvqa_test": partial(docvqa, split="test"),
    **{
        f"chartqa_{split}{variant}": lambda root, split=split: lines(
            root, f"data/chartqa/test_{split}.jsonl", "12.5", "Yes"
        )
        for split in ("human", "augmented")
        for variant in ("", "_upstream")
    },
    "gqa_testdev": lambda root: lines(root, "data/gqa/testdev_balanced.jsonl", "left", "dog"),
    **{
        f"ocrvqa_{split}": lambda root, split=split: lines(
            root, f"data/ocrvqa/ocrvqa_{split}.jsonl", "A. Smith", ["No", "no"]
        )
        for split in ("val", "test")
    },
    "ai2d_test": lambda root: lines(root, "data/ai2diagram/test.jsonl", "moon", "C"),
    "scienceqa_test": scienceqa,
    "mmbench_dev": mmbench,
    "mmbench_test": partial(mmbench, split="test"),
    **dict.fromkeys(("seed_bench_all", "seed_bench_image", "seed_bench_video"), seed_bench),
    "mme": mme,
    **{
        f"{variant}_box_{split}": partial(boxes, variant=variant, split=split)
        for variant, splits in (
            ("refcoco", ("val", "testA", "testB")),
            ("refcoco+", ("val", "testA", "testB")),
            ("refcocog", ("val", "test")),
            ("grit", ("refexp",)),
        )
        for split in splits
    },
    "nocaps_val": partial(captions, file="data/nocaps/nocaps_val_4500_captions.json", field="file_name"),
    "flickr30k_test": partial(captions, file="data/flickr30k/flickr30k_karpathy_test.json"),
    "touchstone_en": partial(touchstone, file="data/touchstone/touchstone_20230831.tsv"),
    "touchstone_zh": partial(touchstone, file="data/touchstone/touchstone_zh.tsv"),
    "video_mme": video_mme,
    "video_mme_subtitles": video_mme_subtitles,
    "video_holmes": video_holmes,
    "tempcompass": tempcompass,
    **dict.fromkeys(("mlvu_choice", "mlvu_open"), mlvu),
    "video_mmmu": video_mmmu,
    "mmbench_video": mmbench_video,
    "longvideobench": longvideobench,
}
FIXTURES |= {
    f"{name}_upstream": FIXTURES[name]
    for name in (
        *("scienceqa_test", "mmbench_dev", "mmbench_test"),
        *("seed_bench_all", "seed_bench_image", "seed_bench_video"),
    )
}
