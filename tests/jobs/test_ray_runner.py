"""The runner on Ray: its loop with a Ray that is not there, and on a real one, which takes a minute to start."""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segue.errors import CheckpointError, ConfigError, SegueError
from segue.jobs import inputs, ray_runner
from segue.jobs.ray_runner import TRIES, on
from segue.jobs.run import BatchJob, run

FAKES = str(Path(__file__).parents[1] / "cli")


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate("abcdef"):
        pixels = np.zeros((32, 48, 3), np.uint8)
        pixels[4:12, number : number + 12] = 255
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in "abcdef"]


def loading(marks, error=""):
    """Loads the fake engine; a worker dies at a picture as often as the file of its name in `marks` has letters."""

    def load():
        from fake_engine import Engine

        if error:
            raise CheckpointError(error)

        def segment(media):
            mark = marks / media.name
            if mark.exists() and (left := mark.read_text()):
                mark.write_text(left[1:])
                os._exit(1)
            yield from Engine().stream_segment(media, ["bright"])

        return segment

    return load


def ran(photos, out, load, where=1):
    """What a run gave and what its manifest holds, without times."""
    job = BatchJob(out=out, formats=("coco",), settings={"phrases": ["bright"]})
    given = [record for record, _ in run(photos, job, load, where)]
    listed = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(one["source"] for one in given) == sorted(one["source"] for one in listed)
    return [{key: value for key, value in record.items() if key != "seconds"} for record in listed]


def unplaced(rows):
    """Rows without where their inputs lie."""
    return [{key: value for key, value in row.items() if key not in ("source", "stamp")} for row in rows]


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("masks.json"))}


@pytest.fixture
def fake_ray(monkeypatch):
    """A Ray in this process: tasks are done when they are got; `deaths` say at which pictures actors die."""
    ray, deaths = ModuleType("ray"), []

    class ActorError(Exception):
        pass

    class Handle:
        def __init__(self, worker):
            self.attempt = SimpleNamespace(remote=lambda source, folder: (worker, source, folder))
            self.__ray_ready__ = SimpleNamespace(remote=lambda: "is there")

    def get(task):
        worker, source, folder = task
        if source.name in deaths:
            deaths.remove(source.name)
            raise ActorError("the worker\ndied")
        return worker.attempt(source, folder)

    ray.remote = lambda **_: lambda cls: SimpleNamespace(remote=lambda *given: Handle(cls(*given)))
    ray.wait = lambda tasks, timeout: (tasks, [])
    ray.get, ray.is_initialized, ray.cluster_resources = get, lambda: True, lambda: {"CPU": 2.0}
    ray.exceptions = SimpleNamespace(RayActorError=ActorError, ObjectLostError=ActorError)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.syspath_prepend(FAKES)
    return deaths


def test_rows_and_files_are_those_of_the_local_runner(fake_ray, photos, tmp_path):
    load = loading(tmp_path / "marks")
    assert ran(photos, tmp_path / "ray", load, on("ray")) == ran(photos, tmp_path / "local", load)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_what_lies_in_a_store_gives_the_rows_and_files_of_the_local_runner(fake_ray, photos, tmp_path, monkeypatch):
    import fake_store

    monkeypatch.setenv("FAKE_STORE", str(tmp_path.parent))
    fake_ray += ["b.png"]
    stored = inputs.find(f"s3://{tmp_path.name}/*.png")
    rows = ran(stored, tmp_path / "ray", fake_store.load, on("ray"))
    assert [row["source"] for row in rows] == [f"s3://{tmp_path.name}/{name}.png" for name in "abcdef"]
    assert unplaced(rows) == unplaced(ran(photos, tmp_path / "local", fake_store.load))
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_what_a_dead_worker_was_at_is_done_again_and_nothing_twice(fake_ray, photos, tmp_path):
    fake_ray += ["b.png", "b.png", "e.png", "f.png"]
    load = loading(tmp_path / "marks")
    assert ran(photos, tmp_path / "ray", load, on("ray")) == ran(photos, tmp_path / "local", load)


def test_an_input_at_which_workers_always_die_is_a_failure_and_the_others_are_done(fake_ray, photos, tmp_path):
    fake_ray += ["c.png"] * (TRIES + 1)
    rows = ran(photos, tmp_path / "ray", loading(tmp_path / "marks"), on("ray"))
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert "died 3 times" in rows[2]["error"] and "the worker died" in rows[2]["error"] and len(fake_ray) == 1


def test_a_run_that_was_cut_short_goes_on_from_its_manifest(fake_ray, photos, tmp_path):
    job = BatchJob(out=tmp_path / "ray", formats=("coco",), settings={"phrases": ["bright"]})
    records = run(photos, job, loading(tmp_path / "marks"), on("ray"))
    next(records), next(records)
    records.close()
    old = [is_old for _, is_old in run(photos, job, loading(tmp_path / "marks"), on("ray"))]
    assert len(old) == 6 and old[:2] == [True, True]


def test_a_model_that_cannot_be_loaded_ends_the_run_in_its_own_words(fake_ray, photos, tmp_path):
    with pytest.raises(SegueError, match=r"^weights are missing$"):
        ran(photos, tmp_path / "ray", loading(tmp_path / "marks", "weights are missing"), on("ray"))


def test_a_cluster_that_does_not_start_here_is_told_in_one_line(fake_ray, photos, tmp_path, monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
    monkeypatch.setattr(sys.modules["ray"], "init", init, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"there is no Ray cluster at this machine: The current node timed out"):
        ran(photos, tmp_path / "ray", loading(tmp_path / "marks"), on("ray"))


@pytest.mark.parametrize("name", ["dask", "rays", "http://host"])
def test_other_runners_are_refused(name):
    with pytest.raises(ConfigError, match="expected local, ray or ray://HOST:PORT"):
        on(name)


def test_without_ray_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"segue\[ray\]"):
        on("ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A real cluster: a head that does no work, and two machines of one worker each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAKES)
        patch.setenv("PYTHONPATH", os.pathsep.join([FAKES, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("FAKE_STORE", str(tmp_path_factory.getbasetemp()))
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for everything else on a busy machine
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
def test_on_a_cluster_of_two_workers_rows_are_the_same_and_dying_workers_lose_nothing(cluster, photos, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    local = ran(photos, tmp_path / "local", loading(marks))
    (marks / "b.png").write_text("x")
    (marks / "e.png").write_text("xx")
    assert ran(photos, tmp_path / "ray", loading(marks), on("ray")) == local
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert not (marks / "b.png").read_text() and not (marks / "e.png").read_text(), "the workers have died"
    (marks / "c.png").write_text("x" * 10)
    rows = ran(photos[:3], tmp_path / "again", loading(marks), on("ray"))
    assert [row["status"] for row in rows] == ["ok", "ok", "failed"]
    assert len((marks / "c.png").read_text()) == 10 - TRIES


@pytest.mark.slow
def test_workers_of_a_cluster_fetch_what_lies_in_a_store(cluster, photos, tmp_path):
    import fake_store

    stored = inputs.find(f"s3://{tmp_path.name}/*.png")
    rows = ran(stored, tmp_path / "ray", fake_store.load, on("ray"))
    assert unplaced(rows) == unplaced(ran(photos, tmp_path / "local", fake_store.load))
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def slow(marks):
    """Loads the fake engine, slowed down; a worker that has done something is a file of its process's number."""

    def load():
        from fake_engine import Engine

        def segment(media):
            time.sleep(0.1)
            yield from Engine().stream_segment(media, ["bright"])
            (marks / str(os.getpid())).touch()

        return segment

    return load


def meanwhile(out, do, times):
    """Does something `times` times in a thread, each time a random moment after another two inputs are done."""
    chance = random.Random(0)

    def work():
        for _ in range(times):
            wanted = len(list(out.glob("[!.]*/result.json"))) + 2
            while len(list(out.glob("[!.]*/result.json"))) < wanted:
                time.sleep(0.01)
            time.sleep(chance.random() / 5)
            do(chance)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def many(photos, tmp_path):
    """Sixty pictures."""
    made = [tmp_path / f"{number}.png" for number in range(60)]
    for number, path in enumerate(made):
        shutil.copyfile(photos[number % 6], path)
    return made


@pytest.mark.slow
def test_ten_workers_killed_at_random_moments_lose_and_duplicate_nothing(cluster, many, tmp_path):
    marks, out = tmp_path / "marks", tmp_path / "ray"
    marks.mkdir()
    local = ran(many, tmp_path / "local", slow(tmp_path))

    def kill(chance):
        while not (there := sorted(marks.iterdir())):
            time.sleep(0.01)
        mark = chance.choice(there)
        mark.unlink()
        os.kill(int(mark.name), signal.SIGKILL)

    killer = meanwhile(out, kill, times=10)
    rows = ran(many, out, slow(marks), on("ray"))
    assert not killer.is_alive(), "all ten were killed before the end"
    assert rows == local and contents(out) == contents(tmp_path / "local")


@pytest.mark.slow
def test_when_a_machine_goes_away_the_other_finishes_the_run(cluster, many, tmp_path, caplog, monkeypatch):
    """The last test here, for the machine stays away."""
    monkeypatch.setattr(ray_runner, "PATIENCE", 1.0)
    out, lost = tmp_path / "ray", cluster.list_all_nodes()[-1]
    local = ran(many, tmp_path / "local", slow(tmp_path))
    killer = meanwhile(out, lambda _: cluster.remove_node(lost, allow_graceful=False), times=1)
    rows = ran(many, out, slow(tmp_path), on("ray"))
    killer.join()
    assert rows == local and contents(out) == contents(tmp_path / "local")
    assert "a worker died" in caplog.text and "no room for another worker" in caplog.text
