"""Decoding in processes of their own: a file that kills its decoder is one client's error."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import LimitError, MediaError
from segue.serve.settings import MIB, Limits
from segue.types import Media, MediaKind

PROCESSES = 2
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
"""In the names of variables that a process which may be taken over must not know."""
_BROKEN = (BrokenPipeError, ConnectionResetError, asyncio.IncompleteReadError, ValueError)


class Decoders:
    """A few processes that decode; one that is stuck, breaks or grows too large is replaced.

    Pixels come as files in `folder`, mapped into memory and without a name, so that they go when nobody uses them.
    """

    def __init__(self, limits: Limits, folder: Path):
        self._limits, self._folder = limits, folder
        self._free: asyncio.Queue[Process | None] = asyncio.Queue()
        for _ in range(PROCESSES):
            self._free.put_nowait(None)

    async def decode(self, source: Path, kind: MediaKind | None) -> Media:
        """All pixels of an image or a video, in an array; without a `kind`, whichever it is.

        Raises: MediaError, if it cannot be decoded, or kills who tries; LimitError.
        """
        limits, target = self._limits, self._folder / f"{secrets.token_hex(8)}.npy"
        job = {"source": str(source), "target": str(target), "kind": kind, "bytes": limits.upload_bytes}
        job |= {"pixels": limits.pixels, "frames": limits.frames, "decoded_bytes": limits.decoded_bytes}
        process = await self._free.get()
        try:
            if process is None or process.returncode is not None:
                process = await self._start()
            found = await asyncio.wait_for(_asked(process, job), limits.decode_seconds)
            if "error" in found:
                raise (LimitError if found["is_limit"] else MediaError)(found["error"])
            pixels = np.asarray(np.load(target, mmap_mode="r", allow_pickle=False))
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
                raise ValueError("a decoder that writes no pixels has been taken over")
            seconds = None if found["seconds"] is None else np.array(found["seconds"], np.float64)
            if seconds is not None and not (seconds.shape == (len(pixels),) and np.isfinite(seconds).all()):
                raise ValueError("a decoder that tells no time of each frame has been taken over")
        except TimeoutError as error:
            await _killed(process)
            process = None
            raise LimitError(f"it was not decoded in {limits.decode_seconds:g} seconds; make it smaller") from error
        except _BROKEN as error:
            await _killed(process)
            process = None
            raise MediaError("it cannot be decoded: it is damaged, or needs too much memory") from error
        except asyncio.CancelledError:
            await _killed(process)
            process = None
            raise
        finally:
            self._free.put_nowait(process)
            target.unlink(missing_ok=True)
        count, height, width, _ = pixels.shape
        notes = tuple(map(str, found["notes"]))
        if found["kind"] == "image":
            return Media(pixels[0], "image", (height, width), notes=notes)
        return Media(pixels, "video", (height, width), count, found["fps"], notes=notes, seconds=seconds)

    async def close(self) -> None:
        """End all processes."""
        for _ in range(self._free.qsize()):
            await _killed(self._free.get_nowait())

    async def _start(self) -> Process:
        environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
        memory, largest = self._limits.decoder_bytes, self._limits.decoded_bytes + MIB
        line = 2**16 + 24 * self._limits.frames  # of an answer: what it says, and a time for each frame
        command = ("-P", "-m", "segue.serve.decoder_child", str(memory), str(largest))
        return await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=PIPE, stdout=PIPE, env=environment, limit=line
        )


async def _asked(process: Process, job: Mapping[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
    await process.stdin.drain()
    found: dict[str, Any] = json.loads(await process.stdout.readuntil(b"\n"))
    return found


async def _killed(process: Process | None) -> None:
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
