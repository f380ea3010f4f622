"""Folders of a server's own in the temporary folder, and those that servers have left there that were killed."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segue.files import ABANDONED

log = logging.getLogger(__name__)

LOCK = "lock"
"""The file that a server holds a lock on while it lives; it says on which machine, for others may share the folder."""


@contextmanager
def scratch(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder that goes with the block. Those of killed servers go first, unless the folder is made in a `parent`."""
    if parent is None:
        clear(Path(tempfile.gettempdir()), prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        folder = Path(name)
        with (folder / LOCK).open("w") as lock:
            lock.write(socket.gethostname())
            lock.flush()
            _lock(lock.fileno())
            yield folder


def clear(parent: Path, prefix: str) -> None:
    """Remove the folders of this user's servers that were killed on this machine: those whose lock nobody holds. A
    folder without a lock may be anybody's.
    """
    if os.name == "nt":  # where nothing says whether a server lives
        return
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError), (folder / LOCK).open("r+") as lock:
            about = os.fstat(lock.fileno())
            is_new = time.time() - about.st_mtime < ABANDONED  # its server may be about to lock it
            is_ours = about.st_uid == os.getuid() and lock.read() == socket.gethostname()
            if is_new or not is_ours or folder.is_symlink() or not _lock(lock.fileno()):
                continue
            log.warning("%s was left by a server that was killed; it is removed", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _lock(descriptor: int) -> bool:
    """Whether the lock is held now: not where another holds it, and not where nothing can be locked."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
