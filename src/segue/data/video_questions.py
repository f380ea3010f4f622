"""Questions about long videos: Video-MME, Video-Holmes, TempCompass, MLVU, VideoMMMU, MMBench-Video, LongVideoBench.

Below the data root, in `long_video/`:

    Video-MME/        Video-MME.tsv, video/<id>.mp4, subtitle/<id>.srt
    Video-Holmes/     test_Video-Holmes.json, video/ or videos/
    TempCompass/      TempCompass_MCQ.tsv, TempCompass_YorN.tsv, TempCompass_Captioning.tsv, videos/
    MLVU/             json/1_plotQA.json to 9_summary.json, video/1_plotQA/ ...
    VideoMMMU/        VideoMMMU.tsv, videos and images where it says
    MMBench-Video/    MMBench-Video.tsv, video/
    LongVideoBench/   lvb_val.json, videos/

JSON files are those that are published; tables are what VLMEvalKit makes of published Parquet files, or ships. The
wordings are VLMEvalKit's for models that take a whole video: it stands first, then all texts, a line break before each.

Source: Fu et al. 2024, Cheng et al. 2025, Liu et al. 2024, Zhou et al. 2024, Hu et al. 2025, Fang et al. 2024,
Wu et al. 2024.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import subtitles
from segue.data.annotation_io import field, find_file, open_sized, read_list, require, select
from segue.data.base import Rows
from segue.data.questions import LETTERS, lettered, make_sample, unique
from segue.data.tables import listed, read_table
from segue.errors import DataError
from segue.media.sampling import choose
from segue.types import Media, Part, Sample

HOME = "long_video"

_ANSWER = "Add `Answer: {Your final answer}` at the end of your reply."
_LETTERED = re.compile(r"^\s*([A-Z])\s*[.:)]\s*")
_MLVU = "Carefully watch this video and pay attention to every detail. Based on your observations, "
_MME = (
    "\nThese are the frames of a video. {subtitles}Select the best answer to the following multiple-choice question "
    "based on the video. Respond with only the letter (A, B, C, or D) of the correct option.\n"
)
_HOLMES = (
    "\n    Based on the given video, reason and answer the single-choice question. Provide your reasoning between the "
    "<think> and </think> tags, and then give your final answer between the <answer> and </answer> tags. "
    "    The question is: {question}. The options are: {options}.     Your answer:\n    "
)
_MLVU_TASKS = (
    *("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning"),
    *("8_sub_scene", "9_summary"),
)
_MLVU_OPEN = ("sub_scene", "summary")


@dataclass(frozen=True, slots=True)
class VideoQuestion:
    """What a row asks: the video's name with the folders where it may be, texts, and what a score needs.

    `image` is shown behind the video. `subtitles` is a file whose lines stand in the first text for {subtitles}.
    """

    id: str
    video: str
    folders: tuple[str, ...]
    texts: tuple[str, ...]
    target: Mapping[str, Any]
    answer: str
    image: str = ""
    subtitles: str | None = None


def load(root: Path, split: str, *, variant: str, frames: int = 128, with_subtitles: bool = False) -> Rows:
    """A row per question. `frames` is how many, spread over the video, the model is to see; samples name them.

    `with_subtitles`, for Video-MME, adds what is said at these frames. `target` holds options and letter, or answers
    where the answer is open, kind and what else figures are grouped by. A split is test, val or, for MLVU, choice or
    open.

    Raises: ConfigError, DataError.
    """
    this = select(_SETS, variant, "variant of video_questions")
    select(dict.fromkeys(this.splits), split, f"split of {variant}")
    if with_subtitles and variant != "video_mme":
        raise DataError(f"subtitles are read for video_mme alone, not for {variant}")
    home = f"{HOME}/{this.folder}"
    files = [f"{home}/{file}" for file in this.files[split]]
    require(root, files, f"the files of {this.folder} there")
    rows = [(Path(file).stem, number, record) for file in files for number, record in enumerate(_records(root / file))]
    read = partial(this.read, with_subtitles=True) if with_subtitles else this.read
    unique([f"{file}-{_name(record, number)}" for file, number, record in rows], home)
    name = f"{variant}/{split}"
    return Rows(
        name, rows, partial(_sample, read=read, home=root / home, source=name, frames=frames), partial(_video, read)
    )


def _records(path: Path) -> Sequence[Any]:
    return read_table(path) if path.suffix == ".tsv" else read_list(path)


def _name(record: Any, number: int) -> str:
    stated = record.get("index") if isinstance(record, Mapping) else None
    return str(number if stated is None else stated)


def _video(read: Callable[[Any, str, str], VideoQuestion], row: tuple[str, int, Any]) -> str:
    file, number, record = row
    try:
        this = read(record, _name(record, number), file)
    except DataError:
        return ""
    # MLVU has videos of one name in several folders; a picture beside the video is another matter
    return "" if this.image else f"{this.folders[0]}/{this.video}"


def _sample(
    row: tuple[str, int, Any],
    rng: np.random.Generator,
    *,
    read: Callable[[Any, str, str], VideoQuestion],
    home: Path,
    source: str,
    frames: int,
) -> Sample:
    file, number, record = row
    this = read(record, f"{file}-{_name(record, number)}", file)
    media = open_sized(find_file([home / folder for folder in this.folders], this.video))
    shown = tuple(dict.fromkeys(choose(f"uniform:{frames}", media.count)))
    texts = list(this.texts)
    if this.subtitles is not None:
        texts[0] = texts[0].replace("{subtitles}", _said(home / this.subtitles, media, shown))
    images: list[Part] = [open_sized(find_file([home], this.image))] if this.image else []
    parts = (media, *images, "\n" + "\n".join(texts))
    return make_sample(this.id, parts, this.target, answer=this.answer, source=source, group=this.video, frames=shown)


def _said(path: Path, media: Media, shown: Sequence[int]) -> str:
    lines: list[str] = []
    if path.exists():
        if media.fps is None:
            raise DataError(f"{media.name} has no frame rate, so subtitles cannot be placed; give the video file")
        lines = subtitles.said_at(subtitles.read(path), [frame / media.fps for frame in shown])
    return "\n".join(["This video's subtitles are listed below:", *(lines or [""]), ""])


def _options(texts: Any, where: str) -> list[str]:
    """Options without their letters."""
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} has options {str(texts)[:60]}; expected a list of texts")
    # there are more letters than options
    if all(
        (match := _LETTERED.match(text)) and match[1] == letter for text, letter in zip(texts, LETTERS, strict=False)
    ):
        return [_LETTERED.sub("", text) for text in texts]
    return list(texts)


def _letter(letter: str, options: Sequence[str], where: str) -> str:
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise DataError(f"{where} has the answer {letter[:60]!r} of {len(options)} options; expected a letter of one")
    return letter


def _place(answer: str, options: Sequence[str], where: str) -> str:
    """The letter of the option with that text."""
    if answer not in options:
        raise DataError(f"{where} has the answer {answer[:60]!r}, which is none of its options")
    return LETTERS[list(options).index(answer)]


def _video_mme(record: Any, name: str, file: str, *, with_subtitles: bool = False) -> VideoQuestion:
    video, question = field(record, "video", str, name), field(record, "question", str, name)
    candidates = listed(field(record, "candidates", str, name), f"candidates of {name}")
    options = _options(candidates, name)
    letter = _letter(field(record, "answer", str, name), options, name)
    target = {"options": options, "letter": letter}
    target |= {column: record.get(column, "") for column in ("duration", "domain", "sub_category", "task_type")}
    opening = _MME if with_subtitles else _MME.replace("{subtitles}", "")
    texts = (opening, f"Question: {question}\n{chr(10).join(candidates)}\nAnswer: ")
    spoken = f"subtitle/{video}.srt" if with_subtitles else None
    return VideoQuestion(name, f"{video}.mp4", ("video",), texts, target, letter, subtitles=spoken)


def _video_holmes(record: Any, name: str, file: str) -> VideoQuestion:
    table = field(record, "Options", dict, name)
    letters = [letter for letter in "ABCDEF" if letter in table]
    options = [field(table, letter, str, f"Options of {name}") for letter in letters]
    if letters != list(LETTERS[: len(letters)]) or not letters:
        raise DataError(f"{name} has options {', '.join(map(str, table)) or 'none'}; expected A, B and so on")
    letter = _letter(field(record, "Answer", str, name).strip(), options, name)
    written = [f"{one}. {option}".replace("'", "") for one, option in zip(letters, options, strict=True)]
    text = _HOLMES.replace("{options}", str(written)).replace("{question}", field(record, "Question", str, name))
    target = {"options": options, "letter": letter, "kind": str(record.get("Question Type", ""))}
    video = f"{field(record, 'video ID', str, name)}.mp4"
    return VideoQuestion(name, video, ("video", "videos"), (text,), target, letter)


def _tempcompass(record: Any, name: str, file: str) -> VideoQuestion:
    kind = field(record, "task_type", str, name)
    question, answer = field(record, "question", str, name), field(record, "answer", str, name)
    target: dict[str, Any] = {
        "kind": kind,
        "aspect": field(record, "dim", str, name),
        "options": [],
        "answers": [answer],
    }
    video = f"{field(record, 'video', str, name)}{record.get('suffix') or '.mp4'}"
    texts: tuple[str, ...] = (question,)
    if kind == "yes_no":
        texts = (question, "\nPlease answer yes or no:")
    elif kind == "captioning":
        target |= {column: field(record, column, str, name) for column in ("mc_question", "mc_answer")}
    else:
        candidates = listed(field(record, "candidates", str, name), f"candidates of {name}")
        target["options"] = options = _options(candidates, name)
        target["letter"] = _place(answer, candidates, name)
        del target["answers"]
        texts = ("\n".join([question, *candidates]), "\nPlease directly give the best option:")
        answer = target["letter"] if kind == "multi-choice" else options[LETTERS.index(target["letter"])]
    return VideoQuestion(name, video, (record.get("prefix") or "videos",), texts, target, answer)


def _mlvu(record: Any, name: str, file: str) -> VideoQuestion:
    task = file.partition("_")[2]
    question, answer = field(record, "question", str, name), field(record, "answer", str, name)
    target: dict[str, Any] = {"kind": task, "options": []}
    if task in _MLVU_OPEN:
        target |= {"question": question, "answers": [answer], "scoring_points": record.get("scoring_points", "")}
        texts: tuple[str, ...] = (f"{_MLVU}answer the given questions.", question)
    else:
        target["options"] = options = _options(record.get("candidates"), name)
        target["letter"] = answer = _place(answer, options, name)
        choice = f"Question: {question}\nOptions:\n{lettered(options, '({letter}) {option}')}".rstrip()
        opening = f"{_MLVU}select the best option that accurately addresses the question."
        texts = (opening, choice, "\nOnly give the best option.")
    return VideoQuestion(name, field(record, "video", str, name), (f"video/{file}",), texts, target, answer)


def _video_mmmu(record: Any, name: str, file: str) -> VideoQuestion:
    category, question = field(record, "category", str, name), field(record, "question", str, name)
    given, answer = field(record, "answer", str, name), field(record, "answer", str, name)
    candidates = listed(record.get("options") or "[]", f"options of {name}")
    options = _options(candidates, name) if candidates else []
    target: dict[str, Any] = {"kind": category, "options": options}
    if options:
        target["letter"] = answer = _letter(given, options, name)
        question += "\n" + lettered(options)
    else:
        target["answers"] = [str(one) for one in listed(given, name)] if given.startswith("[") else [given]
        answer = target["answers"][0] if target["answers"] else ""
    if category == "Adaptation":
        what = "multi-choice" if options else "open-ended"
        question = (
            f"You should watch and learn the video content. Then apply what you learned to answer the following {what} "
            f"question. The image for this question is at the end of the video.\n{question}\n{_ANSWER}"
        )
    else:
        question += f"\nPlease ignore the Quiz question in last frame of the video.\n{_ANSWER}"
    image = record.get("image", "") if category == "Adaptation" else ""
    return VideoQuestion(name, field(record, "video", str, name), ("",), (question,), target, answer, image=image)


def _mmbench_video(record: Any, name: str, file: str) -> VideoQuestion:
    question, answer = field(record, "question", str, name), field(record, "answer", str, name)
    dimensions = listed(field(record, "dimensions", str, name), f"dimensions of {name}")
    target = {"answers": [answer], "dimension": [str(one) for one in dimensions]}
    video = Path(field(record, "video_path", str, name)).name
    return VideoQuestion(name, video, ("video",), (question,), target, answer)


def _longvideobench(record: Any, name: str, file: str) -> VideoQuestion:
    options = _options(field(record, "candidates", list, name), name)
    right = field(record, "correct_choice", int, name)
    if not 0 <= right < len(options):
        raise DataError(f"{name} has correct_choice = {right} of {len(options)} candidates; expected a number from 0")
    target = {"options": options, "letter": LETTERS[right]}
    target |= {column: str(record.get(column, "")) for column in ("duration_group", "question_category")}
    question = f"{field(record, 'question', str, name)}\n{lettered(options)}"
    text = f"{question}\nAnswer with the option's letter from the given choices directly."
    return VideoQuestion(name, field(record, "video_path", str, name), ("videos",), (text,), target, LETTERS[right])


@dataclass(frozen=True, slots=True)
class _Set:
    """Where one set lies, its files by split, and how a row of it is read."""

    folder: str
    files: Mapping[str, tuple[str, ...]]
    read: Callable[..., VideoQuestion]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.files)


_TEMPCOMPASS = tuple(f"TempCompass_{part}.tsv" for part in ("MCQ", "YorN", "Captioning"))
_JSON = tuple(f"json/{task}.json" for task in _MLVU_TASKS)
_SETS = {
    "video_mme": _Set("Video-MME", {"test": ("Video-MME.tsv",)}, _video_mme),
    "video_holmes": _Set("Video-Holmes", {"test": ("test_Video-Holmes.json",)}, _video_holmes),
    "tempcompass": _Set("TempCompass", {"test": _TEMPCOMPASS}, _tempcompass),
    "mlvu": _Set("MLVU", {"choice": _JSON[:7], "open": _JSON[7:]}, _mlvu),
    "video_mmmu": _Set("VideoMMMU", {"test": ("VideoMMMU.tsv",)}, _video_mmmu),
    "mmbench_video": _Set("MMBench-Video", {"test": ("MMBench-Video.tsv",)}, _mmbench_video),
    "longvideobench": _Set("LongVideoBench", {"val": ("lvb_val.json",)}, _longvideobench),
}
