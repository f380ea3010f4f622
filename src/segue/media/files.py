"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segue.errors import MediaError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` when the block ends well.

    Whatever goes wrong inside (an error, Ctrl-C, a full disk), the temporary file is removed and an older file of
    that name stays as it was. A process that is killed leaves at most a hidden `.segue-*` file. The temporary path
    keeps the suffix, because encoders choose their format by it. Do nothing but write inside the block: an OSError
    there is taken for a failed write.

    Raises: MediaError, naming `path` and the reason, if it cannot be written.
    """
    temporary = path.with_name(f".segue-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MediaError(f"cannot write {path}: {reason}; free space or choose another output folder") from error
    finally:
        # The error that brought us here is the one to tell; it also explains why this may fail.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
