"""The data doctor: everything that is wrong with a folder of images and masks, found before anybody learns from it.

`examine` looks at all rows of all splits and stops at nothing; `segue.own_data.doctor.overlays` draws what was found,
and `segue.own_data.doctor.repair` writes a corrected copy. Each row that passes was drawn once as a sample by the very
code that training uses, so what the doctor passes loads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from segue.own_data import folder
from segue.own_data.doctor import cross_row_checks
from segue.own_data.doctor.findings import KINDS, Finding, Kind, Report, in_order
from segue.own_data.doctor.rows import Seen, look
from segue.own_data.folder import Survey
from segue.progress import UNWATCHED, Progress

__all__ = ["KINDS", "Examined", "Finding", "Kind", "Report", "examine"]


@dataclass(frozen=True, slots=True)
class Examined:
    """A report, and what it stands on: the rows, what was seen of each, and its split."""

    report: Report
    survey: Survey
    seen: tuple[Seen, ...]
    splits: tuple[str, ...]


def examine(
    root: Path,
    *,
    phrase: str | None = None,
    group: str | None = None,
    progress: Progress = UNWATCHED,
) -> Examined:
    """Look at all rows of a folder that `segue.own_data.folder` reads; `phrase` and `group` are options of its `load`.

    Progress is told in rows; one that is not sound by itself counts as failed.

    Raises: ConfigError; NotRecognisedError, if the folder is of no known form; DataError, if no row can be told apart.
    """
    survey = folder.survey(root, phrase=phrase, group=group)
    splits = folder.splits(survey.rows)
    progress.start(len(survey.rows))
    seen: list[Seen] = []
    for number, (row, split) in enumerate(zip(survey.rows, splits, strict=True)):
        seen.append(look(number, row, split))
        progress.step(next((finding.kind for finding in seen[-1].findings if finding.severity == "error"), None))
    findings = [Finding(remark.kind, None, remark.place, remark.text, "") for remark in survey.remarks]
    if not survey.rows:
        findings.append(Finding("no_object", None, root.name, "there is not one row", "at least one image with a mask"))
    findings += cross_row_checks.refined(seen)
    findings += cross_row_checks.other_frames(survey.rows, seen, splits)
    findings += cross_row_checks.leaks(survey.rows, seen, splits)
    findings += cross_row_checks.few_groups(survey.rows, splits)
    findings += cross_row_checks.without_split(survey.rows)
    objects = sum(one.objects for one in seen)
    report = Report(len(survey.rows), objects, dict(Counter(splits)), in_order(findings))
    return Examined(report, survey, tuple(seen), tuple(splits))
