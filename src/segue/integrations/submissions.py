"""Videos as the servers of video benchmarks take them: pictures of masks, a folder for each video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segue.data import shapes
from segue.errors import ConfigError
from segue.evals.metrics import videos
from segue.integrations.forms import Written, frame_names, frames_of, media_of
from segue.integrations.runs import Named
from segue.output.answers import Answer
from segue.output.export import write_mask_png


def write_davis(answers: Sequence[Named], out: Path) -> Written:
    """`VIDEO/FRAME.png`, with a palette: pixels of object i are i, and where objects overlap the first keeps them."""
    written = Written()
    for name, answer in _videos(answers):
        media, tracks = media_of((name, answer)), [one.masks for one in answer.regions if one.masks is not None]
        called = frame_names(media)
        (out / name).mkdir()
        overlaps = 0
        for position, frame in enumerate(frames_of((name, answer))):
            masks = np.stack([track.dense(position) for track in tracks])
            overlaps += bool((masks.sum(axis=0) > 1).any())
            write_mask_png(out / name / f"{called[frame]}.png", masks)
            written.pictures += 1
        if not tracks:
            written.notes.append(f"{name}: nothing was found, so that its folder is empty")
        if overlaps:
            written.notes.append(f"{name}: objects overlap on {overlaps} frames, where the first keeps the pixels")
        written.objects += len(tracks)
    return written


def write_ref_vos(answers: Sequence[Named], out: Path) -> Written:
    """`submission.zip` with `Annotations/VIDEO/EXPRESSION/FRAME.png`, as the servers of MeViS and Ref-YouTube-VOS take.

    An expression's number is the place of its phrase among those asked for, from 0; what was not found is black.
    """
    rows = []
    for named in _videos(answers):
        media = media_of(named)
        called, frames = frame_names(media), frames_of(named) or list(range(media.count))
        for number, phrase in enumerate(asked(named[1])):
            tracks = [one.masks for one in named[1].regions if one.phrase == phrase and one.masks is not None]
            found = [shapes.united((track.rles[place] for track in tracks), media.size) for place in range(len(frames))]
            names = [called[frame] for frame in frames]
            row = {"video": named[0], "expression": str(number), "frames": names, "found": found}
            rows.append(row | {"size": list(media.size)})
    videos.submit(rows, out / "submission")
    return Written(pictures=sum(len(row["frames"]) for row in rows), objects=len(rows))


def asked(answer: Answer) -> list[str]:
    """The phrases that an answer is about, in their order as far as it tells."""
    found = [one.phrase for one in answer.regions if one.masks is not None]
    return list(dict.fromkeys(answer.lineage.get("phrases") or [*found, *answer.lineage.get("not_found", ())]))


def _videos(answers: Sequence[Named]) -> list[Named]:
    chosen = [named for named in answers if media_of(named).kind == "video"]
    if len(chosen) < len(answers):
        raise ConfigError(f"{len(answers) - len(chosen)} of {len(answers)} are images; this form is for videos alone")
    return chosen
