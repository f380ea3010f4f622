"""A server on a real socket around a tiny model that answers every question with one object."""

import base64
import io
import time
from contextlib import contextmanager
from types import MappingProxyType, SimpleNamespace

import pytest
from PIL import Image
from running import find_port, listening

from segue import loading, types
from segue.encoder import MemoryStore
from segue.engine import Engine
from segue.geometry import notation


@pytest.fixture(scope="session")
def png():
    """Pixels as a PNG; several pictures as an animated one, ten a second."""

    def encode(pixels):
        file = io.BytesIO()
        first, *more = [Image.fromarray(one) for one in (pixels if pixels.ndim == 4 else [pixels])]
        first.save(file, format="PNG", save_all=bool(more), append_images=more, duration=100)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def data_url():
    return lambda data, kind="image/png": f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def served_engine(official_folder):
    return loading.load(official_folder, device="cpu", dtype="fp32")


class WordyEngine(Engine):
    """Says "word " as often as it may, or until it is told to stop; `said` are the questions in order."""

    def __init__(self):
        self.model = SimpleNamespace(family=SimpleNamespace(parse=notation.parse), grounder=None)
        self.encoder = SimpleNamespace(features=MemoryStore())
        self.lineage, self.said = {"model": "wordy"}, []
        self.pause = 0.002  # seconds after a word of each

    def ask(self, *_, **__):
        return None

    def forget(self):
        return None

    def run(self, requests, *, rows=4):
        running, coming = {}, iter(requests)
        while True:
            while len(running) < rows:
                request = next(coming, "over")
                if request == "over" and not running:
                    return
                if request == "over" or request is None:
                    break
                running[request] = 0
                self.said.append(request.dialogues[0][-1].text)
            for request, words in list(running.items()):
                if request.is_cancelled or words == request.options.max_new_tokens:
                    del running[request]
                    reason = "cancelled" if request.is_cancelled else "length"
                    yield request, types.Finished(types.Answer("word " * words, stop_reason=reason))
                else:
                    running[request] += 1
                    yield request, types.TextDelta("word ")
            time.sleep(self.pause)


@pytest.fixture
def wordy():
    return WordyEngine()


@pytest.fixture(scope="session")
def wordy_once():
    return WordyEngine()


@pytest.fixture(scope="session")
def serve():
    """Starts a server around an engine and ends it: `with serve(engine) as server`."""
    from segue.serve.app import create_app
    from segue.serve.settings import Limits, Settings

    @contextmanager
    def run(engine, limits=None, port=None, others=MappingProxyType({}), load=None, **settings):
        port = port or find_port()
        chosen = Settings(port=port, limits=Limits(**(limits or {})), **settings)
        app = create_app(engine, chosen, model="tiny", others=others, load=load)
        with listening(app, port) as server:
            models = app.state.context.models.values()
            while not all(model.is_ready for model in models):
                assert not any(model.has_failed for model in models)
                time.sleep(0.02)
            yield server

    return run


@pytest.fixture
def free_port():
    return find_port()


@pytest.fixture(scope="session")
def server(serve, served_engine):
    with serve(served_engine) as running:
        yield running


@pytest.fixture(scope="session")
def image_url(picture, png, data_url):
    return data_url(png(picture(60, 80)))


@pytest.fixture(scope="session")
def video_url(clip, png, data_url):
    return data_url(png(clip(5)))
