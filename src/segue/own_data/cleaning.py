"""Pairs of pictures and texts from the web, cleaned before a model is taught with them.

A file holds a JSON record a line: `image` (a path below the root), `text` or a list `texts`, and where known `width`,
`height` and `clip_score`. What is kept is written as it was, with its text cleaned.

Source: Qwen-VL (arXiv 2308.12966), the cleaning of its first stage. Its thresholds are not published; all are fields.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segue import processes
from segue.data.annotation_io import field, find_file, stated_size
from segue.errors import ConfigError, DataError, SegueError
from segue.files import atomic_path
from segue.media import open_media
from segue.progress import UNWATCHED, Progress

CHUNK = 1 << 22
"""Bytes of a file that are cleaned together, and again together if a run is cut short between."""

UNREADABLE = "unreadable"
PARTS, KEPT, DROPPED, COUNTS, RULES = "parts", "kept.jsonl", "dropped.jsonl", "counts.json", "rules.json"

_TAG = re.compile(r"<[a-zA-Z/!][^<>]{0,2000}>")
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,10}|#\d{1,7}|#x[0-9a-fA-F]{1,6});")
_SPECIAL = re.compile(r"<\s*(?:person|unk|pad|s|/s|mask|num|url)\s*>", re.IGNORECASE)
_ODD = re.compile(r"https?://\S+|www\.\S+|\S+@\S+\.\S+|\S+\.(?:jpe?g|png|gif|webp)\b|([^\w\s])\1{3,}", re.IGNORECASE)
_FOREIGN = re.compile(
    r"[^\x00-\xff\u2000-\u206f\u20a0-\u20bf\u2100-\u214f\u2150-\u218f\u2190-\u21ff\u2200-\u22ff\u2460-\u24ff"
    r"\u2500-\u25ff\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\ufe30-\ufe4f"
    r"\u2600-\u27bf\u2b00-\u2bff\ufe0e\ufe0f\U0001f000-\U0001faff]"
)
_EMOJI = re.compile(r"[\u2600-\u27bf\u2b50\u2b55\ufe0f\U0001f000-\U0001faff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a pair must be to be kept, and what is taken out of its text. None or False leaves a rule out."""

    most_oblong: float | None = 4.0
    """Longer side over shorter side, at most."""
    least_side: int | None = 64
    """Shorter side in pixels, at least."""
    least_clip: float | None = None
    """`clip_score`, at least; a record without one is dropped then."""
    languages: bool = True
    """Drop texts with letters that are neither Latin nor Chinese."""
    emoji: bool = True
    """Drop texts with emoji."""
    least_letters: int | None = 5
    """Letters of a cleaned text, at least."""
    most_letters: int | None = 1000
    """Letters of a cleaned text, at most."""
    special_tags: bool = True
    """Drop texts with marks such as <PERSON> that stand for something left out."""
    html: bool = True
    """Take tags and entities of HTML out of the text."""
    patterns: bool = True
    """Take addresses, names of files, and signs repeated four times or more out of the text."""


def clean(record: Mapping[str, Any], rules: Rules, root: Path) -> tuple[str | None, dict[str, Any]]:
    """Why a record is dropped (`None`: it is kept), and the record with its text cleaned.

    Of several texts the longest is kept. The picture is opened, not decoded, where its size is not stated.

    Raises: DataError, for a record of another form; MediaError and LimitError, for a picture that cannot be opened.
    """
    where = "the record"
    texts = [field(record, "text", str, where)] if "text" in record else field(record, "texts", list, where)
    if not texts or not all(isinstance(one, str) for one in texts):
        raise DataError("the record has no text; give text, or texts that are")
    text = max(texts, key=len)
    reason = _raw_reason(text, rules)
    if rules.html:
        text = _ENTITY.sub(" ", _TAG.sub(" ", text))
    if rules.patterns:
        text = _ODD.sub(" ", text)
    text = " ".join(text.split())
    reason = reason or _text_reason(text, rules) or _picture_reason(record, rules, root)
    rest = {name: value for name, value in record.items() if name not in ("text", "texts")}
    return reason, {**rest, "text": text}


def _raw_reason(text: str, rules: Rules) -> str | None:
    if rules.special_tags and _SPECIAL.search(text):
        return "special_tags"
    if rules.emoji and _EMOJI.search(text):
        return "emoji"
    if rules.languages and _FOREIGN.search(text):
        return "languages"
    return None


def _text_reason(text: str, rules: Rules) -> str | None:
    letters = sum(not letter.isspace() for letter in text)
    if rules.least_letters is not None and letters < rules.least_letters:
        return "least_letters"
    if rules.most_letters is not None and letters > rules.most_letters:
        return "most_letters"
    return None


def _picture_reason(record: Mapping[str, Any], rules: Rules, root: Path) -> str | None:
    if rules.least_clip is not None and not _at_least(record.get("clip_score"), rules.least_clip):
        return "least_clip"
    if rules.most_oblong is None and rules.least_side is None:
        return None
    size = stated_size(record) or open_media(find_file([root], field(record, "image", str, "the record"))).size
    if rules.least_side is not None and min(size) < rules.least_side:
        return "least_side"
    if rules.most_oblong is not None and max(size) > rules.most_oblong * min(size):
        return "most_oblong"
    return None


def _at_least(score: object, bound: float) -> bool:
    return isinstance(score, int | float) and score >= bound


def run(  # noqa: PLR0913 - what, by what, and by how many
    file: Path,
    root: Path,
    out: Path,
    rules: Rules,
    *,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    progress: Progress = UNWATCHED,
) -> Counter[str] | None:
    """Clean a file into `out`: what is kept, what is dropped and why, and the counts, which are returned.

    A run that was cut short goes on with the chunks that are not done; what came of a chunk appears at once. Order is
    kept. Progress is told in chunks. Shard (i, n) does chunks i, i + n ... from 0; the last to end joins all, and the
    others give None.

    Raises: ConfigError, if `out` holds a run of another file or root, or other rules; DataError, if the file, or what
        an earlier run has left, cannot be read.
    """
    chunks = list(_chunks(file))
    status = file.stat()
    asked = {"file": str(file), "size": status.st_size, "changed": status.st_mtime_ns, "root": str(root)}
    _begin(out, {**asked, "rules": asdict(rules)})
    mine = range(shard[0], len(chunks), shard[1])
    left = _not_done(out, mine)
    job = partial(_clean_chunk, file, root, out, rules)
    progress.start(len(mine), len(mine) - len(left))
    with processes.pool(max(workers, 1)) as pool:
        for future in as_completed([pool.submit(job, number, chunks[number]) for number in left]):
            future.result()
            progress.step()
    return None if _not_done(out, range(len(chunks))) else _join(out, len(chunks))


def _not_done(out: Path, chunks: Sequence[int]) -> list[int]:
    def is_done(number: int) -> bool:
        return all((out / PARTS / f"{number:06}.{end}").is_file() for end in ("kept", "dropped", "json"))

    return [number for number in chunks if not is_done(number)]


def _chunks(file: Path) -> Iterator[tuple[int, int]]:
    """First and last byte of stretches of whole lines.

    Raises: DataError, if the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = 0
            while True:
                stream.seek(CHUNK, 1)
                stream.readline()
                stop = min(stream.tell(), file.stat().st_size)
                if stop == start:
                    return
                yield start, stop
                start = stop
                stream.seek(start)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def _begin(out: Path, asked: Mapping[str, Any]) -> None:
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    noted = out / RULES
    if not noted.is_file():
        _write(noted, json.dumps(asked, indent=2, ensure_ascii=False) + "\n")
    elif _noted(noted) != asked:
        raise ConfigError(
            f"{out} holds what other rules, another root or another file gave, or the file has changed since; choose "
            "another folder, or empty it"
        )


def _noted(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged; delete it, and the same command makes it anew") from error


def _clean_chunk(file: Path, root: Path, out: Path, rules: Rules, number: int, place: tuple[int, int]) -> None:
    with file.open("rb") as stream:
        stream.seek(place[0])
        lines = stream.read(place[1] - place[0]).decode("utf-8-sig", errors="replace").split("\n")
    counts: Counter[str] = Counter()
    kept: list[str] = []
    dropped: list[str] = []
    for line in lines:
        if not line.strip():
            continue
        reason, record = _judged(line, rules, root)
        counts[reason or "kept"] += 1
        text = json.dumps(record, ensure_ascii=False)
        (kept if reason is None else dropped).append(text)
    parts = out / PARTS
    for name, rows in (("kept", kept), ("dropped", dropped)):
        _write(parts / f"{number:06}.{name}", "".join(f"{row}\n" for row in rows))
    # the counts come last: they say that the chunk is done
    _write(parts / f"{number:06}.json", json.dumps(counts))


def _judged(line: str, rules: Rules, root: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise DataError("the line is no JSON object; expected one with image and text")
        reason, cleaned = clean(record, rules, root)
    except (SegueError, ValueError, RecursionError) as error:
        return UNREADABLE, {"reason": UNREADABLE, "error": str(error), "line": line[:200]}
    return reason, cleaned if reason is None else {"reason": reason, **record}


def _join(out: Path, chunks: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    names = [out / PARTS / f"{number:06}" for number in range(chunks)]
    for name in names:
        counts.update(_noted(name.with_suffix(".json")))
    for file, kind in ((KEPT, ".kept"), (DROPPED, ".dropped")):
        with atomic_path(out / file) as temporary, temporary.open("wb") as stream:
            for name in names:
                stream.write(name.with_suffix(kind).read_bytes())
    _write(out / COUNTS, json.dumps(counts, indent=2) + "\n")
    return counts


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def told(counts: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    """What was kept, then what each rule dropped, most first."""
    rest = sorted(((name, count) for name, count in counts.items() if name != "kept"), key=lambda item: -item[1])
    return [("kept", counts.get("kept", 0)), *rest]
