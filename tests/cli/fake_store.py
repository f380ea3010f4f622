"""An object store that is a folder: `s3://bucket/name` is FAKE_STORE/bucket/name. Importing this makes it so, in worker
processes too, where the load below is looked up."""

import os
from functools import partial
from pathlib import Path

import fsspec
from fake_engine import Engine
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class Store(DirFileSystem):
    protocol = "s3"
    cachable = False  # codespell:ignore cachable

    def __init__(self, **options):
        super().__init__(path=os.environ["FAKE_STORE"], fs=LocalFileSystem(), **options)


fsspec.register_implementation("s3", Store, clobber=True)


def folder(place: str) -> Path:
    """Where the files of a folder are, also of one in the store."""
    return Path(place.replace("s3:/", os.environ.get("FAKE_STORE", "")))


def load():
    return partial(Engine().stream_segment, phrases=["bright"])
