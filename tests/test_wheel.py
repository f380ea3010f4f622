"""The wheel and the sdist: nothing missing, nothing more, and no extra needed for what needs none."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OF_AN_EXTRA = (
    *("segue.evals.harnesses.lmms_eval", "segue.evals.harnesses.vlmevalkit"),
    *("segue.media.dicom", "segue.serve.", "segue.integrations.cvat", "segue.integrations.comfyui"),
)
"""Modules that are imported only where the packages of an extra, or a harness, are used."""

IN_BARE = """
import importlib, json, sys
lacking = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacking[name] = error.name.partition(".")[0]
print(json.dumps(lacking), flush=True)
from PIL import Image
from segue.cli.main import main
Image.new("RGB", (64, 64)).save("black.png")
main(["segment", "black.png", "the star", "-o", "found", "--prefill", "It is [SEG]."])
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


INSTALLED = {plain(one.name) for one in distributions()}


def needed(name: str, found: set[str]) -> set[str]:
    """Distributions that an installation without extras brings, as far as they are here; added to `found`."""
    found.add(plain(name))
    for need in map(Requirement, requires(name) or ()):
        is_wanted = need.marker is None or need.marker.evaluate({"extra": ""})
        if is_wanted and plain(need.name) not in found and plain(need.name) in INSTALLED:
            needed(need.name, found)
    return found


def without_extras(site: Path) -> None:
    """Fill a folder with links to all that is installed here and that `pip install segue` alone would bring."""
    wanted, links = needed("segue", set()) - {"segue"}, {}
    for one in distributions():
        if plain(one.name) in wanted:
            links |= {top: one.locate_file(top) for file in one.files or () if (top := file.parts[0]) != ".."}
    for name, place in links.items():
        (site / name).symlink_to(Path(str(place)))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with wheel and sdist of what git would hand over."""
    home = tmp_path_factory.mktemp("built")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (home / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, home / "source" / name)
    code = "import setuptools.build_meta as b; b.build_sdist('../out'); b.build_wheel('../out')"
    subprocess.run([sys.executable, "-c", code], cwd=home / "source", capture_output=True, check=True)
    return home


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_the_sdist_no_tests(built):
    (wheel,), (sdist,) = (built / "out").glob("*.whl"), (built / "out").glob("*.tar.gz")
    package = built / "source" / "src" / "segue"
    files = {f"segue/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("segue/")} == files
    assert all(name.startswith(("segue/", "segue-")) for name in names)
    with tarfile.open(sdist) as archive:
        tops = {"/".join(name.split("/")[1:2]) for name in archive.getnames()} - {""}
    assert tops == {
        *("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "SECURITY.md"),
        *("pyproject.toml", "setup.cfg", "src"),
    }


@pytest.mark.slow
def test_without_extras_every_module_is_imported_and_the_demo_model_segments(built):
    (wheel,) = (built / "out").glob("*.whl")
    site = built / "site"
    zipfile.ZipFile(wheel).extractall(site)
    modules = [
        ".".join(path.relative_to(site).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((site / "segue").rglob("*.py"))
    ]
    without_extras(site)
    assert (site / "torch").is_dir() and not (site / "peft").exists()
    run = subprocess.run(
        [sys.executable, "-S", "-c", IN_BARE, json.dumps(modules)],
        cwd=built,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lacking = json.loads(run.stdout)
    assert "segue.media.dicom" in lacking, "the extras are hidden"
    assert {name: package for name, package in lacking.items() if not name.startswith(OF_AN_EXTRA)} == {}
    assert (built / "found" / "manifest.jsonl").is_file()
