"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time

from segue.errors import ConfigError, MediaError

log = logging.getLogger(__name__)

PART = ".segue-"
"""Begins the name of a file or folder that is being written."""

ABANDONED = 60.0
"""Seconds without a new file after which a folder that nobody holds is taken for one of a process that was killed."""

OLD = ".old-segue-"
"""Begins the name of a folder that is being replaced; the rest is its name. `.old-photos` may be somebody's own."""

_NO_LOCKS = frozenset({errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP})


class InUseError(ConfigError):
    """Another process holds a lock."""


DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "a file grew too large for the disk",
}
"""What a disk that takes no more says, and what it means."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` when the block ends well.

    Whatever goes wrong inside (an error, Ctrl-C, a full disk), the temporary file is removed and an older file of
    that name stays as it was. A process that is killed leaves at most a hidden `.segue-*` file. The temporary path
    keeps the suffix, because encoders choose their format by it. Do nothing but write inside the block: an OSError
    there is taken for a failed write.

    Raises: MediaError, naming `path` and the reason, if it cannot be written.
    """
    temporary = path.with_name(f"{PART}{secrets.token_hex(6)}{path.suffix}")
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


@contextmanager
def atomic_folder(path: Path, *, replaces: Collection[str] | None = None) -> Iterator[Path]:
    """A new folder beside `path` to fill; it takes the name `path` when the block ends well, whole or not at all.

    Whatever goes wrong inside, it is removed, and what had that name stays as it was. A process that is killed leaves
    at most a hidden `.segue-*` folder. Do nothing but fill the folder inside the block: an OSError there is taken for
    a failed write.

    `replaces` are the names that an older folder at `path` may hold to be replaced, which are those that are written: a
    folder that holds anything else is somebody's own. None replaces nothing.

    Raises: MediaError, if there is something at `path` that may not be replaced, or the folder cannot be written.
    """
    if path.exists():
        _check_replaceable(path, replaces)
    try:
        with new_folder(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        raise MediaError(f"cannot write {path}: {reason}; free space or choose another output folder") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill; it takes the name `path` in the place of an older one when the block ends
    well, and is removed otherwise. One that a killed process left beside it is removed first.

    Raises: OSError, as filling it and giving it its name do.
    """
    _remove_abandoned(path.parent)
    temporary = path.with_name(f"{PART}{secrets.token_hex(6)}")
    try:
        temporary.mkdir(parents=True)
        with alone(temporary):
            yield temporary
            replace_folder(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(path: Path, new: Path) -> None:
    """Give a folder its name; an older one of that name goes away, and only after.

    A folder with contents cannot be renamed over, so the old one steps aside first. A process that is killed in between
    leaves it there, and `recover` brings it back; one that was killed later leaves some of it, which goes first here.
    """
    old = path.with_name(f"{OLD}{path.name}")
    if not path.exists():
        new.rename(path)
        return
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undo what a killed process had begun in a folder that nobody else writes to: what is half written goes, a folder
    that was about to be replaced comes back. A link goes, and what it points to stays.

    Raises: OSError, if that cannot be done.
    """
    for part in folder.glob(f"{PART}*"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()
    for old in folder.glob(f"{OLD}*"):
        if old.is_symlink() or not old.is_dir():
            continue
        whole = old.with_name(old.name.removeprefix(OLD))
        if whole.exists():
            shutil.rmtree(old)
        else:
            old.rename(whole)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes had begun to fill: folders that have been left alone for a while and that nobody
    holds a lock on.
    """
    if os.name == "nt":  # where a lock says nothing
        return
    for part in folder.glob(f"{PART}*"):
        is_ours = re.fullmatch(f"{re.escape(PART)}[0-9a-f]{{12}}", part.name) and part.is_dir()
        if not is_ours or time() - part.stat().st_mtime < ABANDONED:
            continue
        with suppress(ConfigError), alone(part):  # somebody is at work on it
            log.warning("%s was left by a process that was killed; it is removed", part)
            shutil.rmtree(part, ignore_errors=True)


def _check_replaceable(path: Path, names: Collection[str] | None) -> None:
    if names is None:
        raise MediaError(f"{path} is there already; choose another folder, or remove it first")
    if not path.is_dir():
        raise MediaError(f"{path} is a file where a folder should be made; choose another name")
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in names)
    if others:
        raise MediaError(
            f"{path} holds {', '.join(others[:5])}, which is not ours, so it is not overwritten; choose another folder"
        )


@contextmanager
def alone(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds a lock on a folder or file that exists; the system lets go of it when the process dies in any way.

    A `shared` lock may be held by several at once, as long as nobody holds it alone. Where the file system cannot lock
    (NFS knows no locks on folders), a warning says so, and two runs into one folder are the user's to avoid.

    Raises: InUseError, if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows cannot lock a folder; there two runs into one folder are the user's to avoid
        yield
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks only what may be written
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(f"another run is writing to {path}; wait for it, or give another -o") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s cannot be locked here: let no other run write to it", path)
        yield
    finally:
        os.close(descriptor)


def append(path: Path, line: bytes) -> None:
    """Add a line to a file, so that it is on the disk when this returns; half a line is taken back if it cannot be.

    Raises: OSError, if the disk takes no more.
    """
    rest = memoryview(line)
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def mend(path: Path) -> None:
    """Cut off a last line without its end, which a kill has torn."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
