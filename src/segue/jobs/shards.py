"""Several machines on one run: each does its part of the inputs into one folder, with a list of its own beside
`manifest.jsonl`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from segue.errors import ConfigError
from segue.files import alone, mend

_NAME = re.compile(r"manifest-(\d+)-of-(\d+)-([0-9a-f]{16})\.jsonl")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `count`, from 0, of the run that the sixteen hex digits `run` stand for: its inputs in their
    order, what is asked and the settings."""

    number: int
    count: int
    run: str

    @property
    def file_name(self) -> str:
        """Its list in the output folder."""
        return f"manifest-{self.number}-of-{self.count}-{self.run}.jsonl"


def files(out: Path) -> dict[Path, Shard]:
    """The lists that shards have left in an output folder."""
    named = ((path, _NAME.fullmatch(path.name)) for path in sorted(out.glob("manifest-*.jsonl")))
    return {path: Shard(int(found[1]), int(found[2]), found[3]) for path, found in named if found}


@contextmanager
def claimed(out: Path, shard: Shard) -> Iterator[None]:
    """This shard's list is there, mended, and this process's alone; shards of the same number of parts may be at work.

    Raises: ConfigError, if another process does this shard or shards of another number of parts, or if shards of other
    inputs, phrases or settings have been at work and are not merged yet.
    """
    path = out / shard.file_name
    path.touch()
    with alone(path), ExitStack() as others:
        for other, its in files(out).items():
            if its.run != shard.run:
                if not path.stat().st_size:
                    path.unlink()
                raise ConfigError(
                    f"{other} is of a sharded run over other inputs, or with other phrases or settings; give every "
                    "shard the same, or merge that run first: its command again, without --shard"
                )
            if its.count != shard.count:
                others.enter_context(alone(other, shared=True))
        mend(path)
        yield
