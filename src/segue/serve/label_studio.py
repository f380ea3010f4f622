"""`/label-studio`: the routes that Label Studio expects of a machine learning backend.

Objects are looked for by what each label asks for, and drawn in every way that the labelling configuration has. What a
person draws while labelling says more: words in a text field are looked for in place of the label's, a box is where to
look, clicks choose among the parts of what is found. Images and videos come from the Label Studio that the environment
names, with its token, and from nowhere else but where this server fetches from anyway.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from jaxtyping import Bool
from pydantic import Field

from segue.errors import DataError, SegueError
from segue.geometry.masks import box_of, track
from segue.geometry.polygons import parts
from segue.integrations.label_studio import Config, Json, parse_config, results
from segue.media import open_media
from segue.options import Options
from segue.output.answers import Answer
from segue.serve.answers import LEFT, while_connected
from segue.serve.chat import finished
from segue.serve.context import Context
from segue.serve.errors import ApiError
from segue.serve.scheduler import Tickets
from segue.serve.schema import MOST_ITEMS, Items, Open
from segue.serve.settings import MIB, Limits
from segue.types import MaskTrack, Media, Region

log = logging.getLogger(__name__)

PREFIX = "/label-studio"
URL_VARIABLE, TOKEN_VARIABLE = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"
MOST_TASKS = 100


class Task(Open):
    """What is to be labelled."""

    data: Json = {}


class Params(Open):
    """How a prediction was asked for; `context` is what a person has drawn, where a person has."""

    context: Json | None = None


class Predict(Open):
    """What to predict."""

    tasks: Items[Task] = Field(max_length=MOST_TASKS)
    label_config: str = Field(max_length=MIB)
    params: Params = Params()


@dataclass(frozen=True, slots=True)
class Wish:
    """What is looked for under a label: the words, a box x0 y0 x1 y1 in shares of the image, clicks x y in shares."""

    label: str
    phrase: str
    box: tuple[float, float, float, float] | None = None
    inside: list[tuple[float, float]] = field(default_factory=list)
    outside: list[tuple[float, float]] = field(default_factory=list)


def add_routes(app: FastAPI, context: Context) -> None:
    """The routes."""
    version = str(context.scheduler.engine.lineage.get("model_hash") or context.scheduler.name)
    store = _Store(os.environ.get(URL_VARIABLE, ""), os.environ.get(TOKEN_VARIABLE, ""), context.limits)

    @app.get(PREFIX)
    @app.get(f"{PREFIX}/")
    @app.get(f"{PREFIX}/health")
    async def health() -> Json:
        """That the backend lives."""
        return {"status": "UP", "model_class": "Segue"}

    @app.get(f"{PREFIX}/metrics")
    async def metrics() -> Json:
        """Nothing; the figures are at /metrics."""
        return {}

    @app.post(f"{PREFIX}/setup")
    async def setup(body: dict[str, Any]) -> Json:
        """Whether a project's labelling configuration can be served, and by which model."""
        if body.get("schema"):
            parse_config(str(body["schema"])[:MIB])
        return {"model_version": version}

    @app.post(f"{PREFIX}/predict")
    async def predict(body: Predict, request: Request) -> Json:
        """A prediction for each task; one that fails among several is empty and says why."""
        config = parse_config(body.label_config)
        wishes = read_wishes(config, (body.params.context or {}).get("result") or [])
        rows = []
        for task in body.tasks:
            try:
                media = await _open(task, config, store, context)
                rows.append(_row(await _look(media, wishes, context, request), config, version))
            except (ApiError, SegueError) as error:
                if len(body.tasks) == 1 or (isinstance(error, ApiError) and error.status_code == LEFT):
                    raise
                log.warning("a task of Label Studio failed: %s", type(error).__name__)
                reason = error.message if isinstance(error, ApiError) else str(error)
                rows.append({"result": [], "score": 0.0, "model_version": version, "error": reason})
        return {"results": rows}

    @app.post(f"{PREFIX}/webhook", status_code=201)
    async def webhook(body: dict[str, Any]) -> JSONResponse:
        """Takes note of nothing: `segue finetune` learns from an export."""
        return JSONResponse({"result": {}, "status": "ok"}, 201)


def read_wishes(config: Config, drawn: Sequence[Any]) -> list[Wish]:
    """What to look for: every label of the configuration, or what a person has drawn.

    Raises: DataError, if that is not in the form of Label Studio.
    """
    try:
        if len(drawn) > MOST_ITEMS:
            raise DataError(f"{len(drawn):,} shapes are drawn; at most {MOST_ITEMS:,} are read: erase some")
        texts = [row["value"]["text"] for row in drawn if row.get("type") == "textarea"]
        words = next((text[0] if isinstance(text, list) else text for text in texts if text), None)
        marked = [row for row in drawn if row.get("type") in ("rectanglelabels", "keypointlabels")]
        by_label: dict[str, list[Json]] = {}
        for row in marked:
            by_label.setdefault(str((row["value"].get(row["type"]) or [""])[0]), []).append(row)
        wishes = [
            _wish(label, str(words or config.phrases.get(label) or label), rows) for label, rows in by_label.items()
        ]
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"what was drawn is not in the form of Label Studio ({error})") from error
    if marked:
        return [wish for wish in wishes if wish.phrase]
    if words is not None:
        return [Wish(next(iter(config.phrases), str(words)), str(words))]
    return [Wish(label, phrase) for label, phrase in config.phrases.items()]


def _wish(label: str, phrase: str, rows: Sequence[Json]) -> Wish:
    box, inside, outside = None, list[tuple[float, float]](), list[tuple[float, float]]()
    for row in rows:
        value = row["value"]
        x, y = _share(value["x"]), _share(value["y"])
        if row["type"] == "rectanglelabels":
            box = (x, y, x + _share(value["width"]), y + _share(value["height"]))
        else:
            (inside if int(row.get("is_positive", value.get("is_positive", 1))) else outside).append((x, y))
    return Wish(label, phrase, box, inside, outside)


def _share(percent: Any) -> float:
    share = float(percent) / 100
    if not -1 <= share <= 2:  # no number is neither
        raise ValueError(f"{str(percent)[:40]} is no percentage")
    return share


async def _open(task: Task, config: Config, store: _Store, context: Context) -> Media:
    address = task.data.get(config.key)
    if not isinstance(address, str):
        raise ApiError(400, f"the task has no data {config.key!r}", code="invalid_media", param="tasks")
    param = f"tasks.data.{config.key}"
    if store.holds(address):
        data = await asyncio.to_thread(store.get, address)
    else:
        data = await context.media.read(address, param)
    return await context.media.from_bytes(data, "video" if config.medium == "Video" else "image", param)


async def _look(media: Media, wishes: Sequence[Wish], context: Context, request: Request) -> Answer:
    """One answer with all that was found, each region under its label."""
    found: list[Region] = []
    for together in _together(wishes, context.limits.phrases):
        shown, place = _cropped(media, together[0].box)
        phrases = list(dict.fromkeys(wish.phrase for wish in together))
        asked = context.scheduler.engine.segmentation(shown, phrases, Options(max_tiles=context.limits.tiles))
        tickets = Tickets([context.scheduler.submit(asked, request.state.client)])
        [answer] = await while_connected(request, tickets, finished(tickets))
        for wish in together:
            regions = [one for one in answer.regions if one.phrase == wish.phrase and one.masks is not None]
            found += [await asyncio.to_thread(_placed, one, wish, media, place) for one in regions]
    return Answer("", tuple(found), media=media)


def _together(wishes: Sequence[Wish], most: int) -> list[list[Wish]]:
    """Wishes in groups that can be asked at once: of the whole medium several, of a box one."""
    whole = [wish for wish in wishes if wish.box is None]
    groups = [whole[start : start + most] for start in range(0, len(whole), most)]
    return groups + [[wish] for wish in wishes if wish.box is not None]


def _cropped(media: Media, box: tuple[float, float, float, float] | None) -> tuple[Media, tuple[slice, slice]]:
    """The part of an image in a box, and where it lies there; all of it without one, and of a video."""
    height, width = media.size
    if box is None or media.kind == "video":
        return media, (slice(0, height), slice(0, width))
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    assert isinstance(media.source, np.ndarray)
    pixels = media.source[rows, columns]
    if min(pixels.shape[:2]) < 2:
        raise DataError("the box has no pixel of the image; draw it larger")
    return open_media(np.ascontiguousarray(pixels)), (rows, columns)


def _placed(region: Region, wish: Wish, media: Media, place: tuple[slice, slice]) -> Region:
    """A region under its label, its masks brought to the whole medium and chosen by clicks."""
    assert region.masks is not None
    masks = region.masks
    if masks.size != media.size:
        whole = np.zeros((1, *media.size), bool)
        whole[0][place] = masks.dense(0)
        masks = track(whole, masks.index)
    if (wish.inside or wish.outside) and media.kind == "image":
        masks = _chosen(masks, wish)
    return replace(region, phrase=wish.label, masks=masks, box=box_of(masks.dense(0)))


def _chosen(masks: MaskTrack, wish: Wish) -> MaskTrack:
    """The parts of a mask that are clicked on, or all, without those that are clicked away."""
    height, width = masks.size

    def is_hit(part: Bool[np.ndarray, "h w"], clicks: Sequence[tuple[float, float]]) -> bool:
        pixels = [(min(int(y * height), height - 1), min(int(x * width), width - 1)) for x, y in clicks]
        return any(part[max(row, 0), max(column, 0)] for row, column in pixels)

    kept = np.zeros((1, height, width), bool)
    for part in parts(masks.dense(0)):
        if (not wish.inside or is_hit(part, wish.inside)) and not is_hit(part, wish.outside):
            kept[0] |= part
    return track(kept, masks.index)


def _row(answer: Answer, config: Config, version: str) -> Json:
    scores = [float(one.score) for one in answer.regions if one.score is not None]
    found = results(answer, config)
    return {"result": found, "score": float(np.mean(scores)) if scores and found else 0.0, "model_version": version}


class _Store:
    """The Label Studio whose tasks name files by a path of its own, or by its address; none without a URL."""

    def __init__(self, url: str, token: str, limits: Limits):
        parts = urlsplit(url)
        self._origin = (parts.scheme, parts.netloc.lower())
        self._base, self._token, self._limits = parts.path.rstrip("/"), token, limits

    def holds(self, address: str) -> bool:
        """Whether an address is one of its files.

        Raises: ApiError, if it cannot be read.
        """
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise ApiError(400, "the address cannot be read", code="remote_url") from error
        return address.startswith("/") or (
            bool(self._origin[1]) and (parts.scheme, parts.netloc.lower()) == self._origin
        )

    def get(self, address: str) -> bytes:
        """The bytes of a file.

        Raises: ApiError, if it cannot be had.
        """
        parts = urlsplit(address)
        path = parts.path.removeprefix(self._base) if parts.netloc else parts.path
        if not self._origin[1]:
            given = f"{URL_VARIABLE} (http://...) and {TOKEN_VARIABLE}"
            message = f"the task names a file of Label Studio; set {given} for this server"
            raise ApiError(400, message, code="remote_url")
        is_strange = not address.isascii() or not address.isprintable() or " " in address
        if not path.startswith("/data/") or ".." in unquote(path).split("/") or is_strange:
            raise ApiError(400, "the task names no file of Label Studio; expected /data/...", code="remote_url")
        is_secure = self._origin[0] == "https"
        connect = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        connection = connect(self._origin[1], timeout=self._limits.fetch_seconds)
        try:
            target = self._base + path + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"authorization": f"Token {self._token}"})
            response = connection.getresponse()
            data = response.read(self._limits.upload_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(400, f"Label Studio does not answer ({type(error).__name__})", code="remote_url") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ApiError(400, f"Label Studio answers {response.status} for a file of the task", code="remote_url")
        return data
