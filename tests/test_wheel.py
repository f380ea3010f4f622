"""The wheel and the sdist: nothing missing, nothing more, and no extra needed for what needs none."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HARNESSES = {"segue.evals.harnesses.lmms_eval", "segue.evals.harnesses.vlmevalkit"}
"""Modules that a harness imports, where it is installed."""

# what stands in the place of an environment without any extra: their packages cannot be imported
BARE = """
import sys
class Extras:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Extras())
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


def only_in_extras() -> set[str]:
    """Modules that are here because of an extra, and that `pip install segue` alone would not bring."""
    named = {plain(need.name) for need in map(Requirement, requires("segue") or ()) if need.marker is not None}
    extras = named - needed("segue", set())
    return {module for module, names in packages_distributions().items() if {plain(one) for one in names} & extras}


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
    blocked = only_in_extras()
    assert "peft" in blocked and "torch" not in blocked
    bare = BARE.format(blocked=blocked)
    lines = [f"{bare}import importlib, segue", f"assert segue.__file__.startswith({str(site)!r}), segue.__file__"]
    lines += [f"importlib.import_module({name!r})" for name in modules if name not in HARNESSES]
    lines += [
        "from segue.cli.main import main",
        "from PIL import Image",
        "Image.new('RGB', (64, 64)).save('black.png')",
        "main(['segment', 'black.png', 'the star', '-o', 'found', '--prefill', 'It is [SEG].'])",
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=built,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (built / "found" / "manifest.jsonl").is_file()
