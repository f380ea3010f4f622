"""What servers leave in the temporary folder, and who may remove it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

from segue.serve import scratch as module
from segue.serve.scratch import LOCK, clear, scratch

CODE = """
import sys
from segue.serve.scratch import scratch
with scratch("segue-serve-"):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "ABANDONED", -1)
    return tmp_path


def test_it_goes_with_its_block(place):
    with scratch("segue-serve-") as folder:
        (folder / "kept").mkdir()
        assert [folder] == list(place.iterdir())
        with scratch("segue-serve-", folder) as inner:
            assert inner.parent == folder
    assert list(place.iterdir()) == []


def test_a_killed_server_s_folder_is_removed_and_a_living_one_s_is_not(place):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "TMPDIR": str(place)}}
    with subprocess.Popen([sys.executable, "-c", CODE], **pipes) as other:
        other.stdout.readline()
        [left] = place.iterdir()
        (left / "kept").mkdir()
        (left / "kept" / "file").write_bytes(b"x")
        clear(place, "segue-serve-")
        assert (left / "kept" / "file").exists(), "it is in use"
        other.send_signal(signal.SIGKILL)
        other.wait()
        with scratch("segue-serve-") as folder:
            assert list(place.iterdir()) == [folder]


@pytest.mark.parametrize(
    "change", ["no lock", "another machine", "another prefix", "just made", "another user", "no locks"]
)
def test_what_may_be_in_use_or_another_s_stays(place, monkeypatch, change):
    folder = place / ("other-1" if change == "another prefix" else "segue-serve-1")
    folder.mkdir()
    if change != "no lock":
        (folder / LOCK).write_text("elsewhere" if change == "another machine" else socket.gethostname())
    if change == "just made":
        monkeypatch.setattr(module, "ABANDONED", 60.0)
    if change == "another user":
        monkeypatch.setattr(os, "getuid", lambda: -2)
    if change == "no locks":
        monkeypatch.setattr(module, "_lock", lambda _: False)
    clear(place, "segue-serve-")
    assert folder.exists()
    monkeypatch.undo()
