import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from segue.cli import doctor, environment


def test_a_machine_that_runs_these_tests_is_usable(run_segue):
    run = run_segue("doctor", "env", "--json")
    found = json.loads(run.stdout)
    assert run.exit_code == 0 and found["usable"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["torch"]["value"] == metadata.version("torch")
    assert {"python", "cpu", "cuda", "mps", "memory", "video in", "video out", "torchvision"} <= {
        name.split(":")[0] for name in checks
    }
    assert checks["torchvision"]["value"] == "not needed"


def test_people_get_a_table_and_a_verdict(run_segue):
    run = run_segue("doctor")
    assert run.exit_code == 0
    assert run.stdout.rstrip().endswith("Segue can run here.") and "transformers" in run.stdout


def test_a_problem_is_named_and_is_exit_2(run_segue, monkeypatch):
    monkeypatch.setattr(
        doctor, "examine", lambda: [environment.EnvironmentCheck("torch", "problem", "torch is missing")]
    )
    run = run_segue("doctor")
    assert run.exit_code == 2
    assert "torch is missing" in run.stdout and "cannot run here" in run.stdout


@pytest.mark.parametrize(
    ("need", "status", "value"),
    [
        ("numpy>=1", "ok", metadata.version("numpy")),
        ("numpy>=99", "problem", f"numpy is {metadata.version('numpy')}, but >=99 is needed"),
        ("surely-not-there>=1", "problem", "surely-not-there is missing"),
        ('surely-not-there; sys_platform == "nowhere"', None, None),
    ],
)
def test_a_required_package_must_be_there_in_the_right_version(monkeypatch, need, status, value):
    monkeypatch.setattr(environment, "requires", lambda name: [need])
    monkeypatch.setattr(environment, "metadata", lambda name: SimpleNamespace(get_all=lambda key: []))
    found = {finding.name: finding for finding in environment.packages()}
    finding = found.get(need.split(">")[0].split(";")[0])
    assert (finding and (finding.status, finding.value)) == (status and (status, value))


def test_an_extra_that_is_not_installed_is_only_a_note(monkeypatch):
    needs = ['numpy>=1; extra == "good"', 'surely-not-there; extra == "poor"']
    monkeypatch.setattr(environment, "requires", lambda name: needs)
    monkeypatch.setattr(environment, "metadata", lambda name: SimpleNamespace(get_all=lambda key: ["good", "poor"]))
    found = {finding.name: (finding.status, finding.value) for finding in environment.packages()}
    assert found["extra good"] == ("ok", "installed")
    assert found["extra poor"] == ("note", "surely-not-there is missing")


@pytest.mark.parametrize(("known", "statuses"), [({"h264", "libx264"}, ["ok", "ok"]), ({"vp9"}, ["problem", "note"])])
def test_codecs_that_are_needed_are_looked_for(monkeypatch, known, statuses):
    monkeypatch.setitem(sys.modules, "av", SimpleNamespace(codecs_available=known, ffmpeg_version_info="0"))
    assert [finding.status for finding in environment.codecs()] == statuses


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (("env", "-o", "x"), "--output"),
        (("demo", "--overwrite"), "--overwrite"),
        ((".", "--on", "refcoco", "--fix", "x"), "--fix"),
        ((".", "--on", "refcoco", "-o", "x", "--phrase", "cat"), "--output, --phrase"),
    ],
)
def test_an_option_that_means_nothing_there_is_refused(run_segue, tmp_path, monkeypatch, words, unused):
    monkeypatch.chdir(tmp_path)
    run = run_segue("doctor", *words)
    assert run.exit_code == 2 and f"so {unused} mean nothing here" in run.stderr.replace("\n", " ")
