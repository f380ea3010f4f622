"""What `deploy/` holds: no container engine runs here, so the files are linted and held against the code."""

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segue.cli.main import built

DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.fixture(scope="module")
def flags():
    return {flag for parameter in built("serve").params for flag in parameter.opts}


@pytest.fixture(scope="module")
def stages():
    """The stages of the Dockerfile by name, each as its instructions, with what it is built from."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    found = re.split(r"^FROM (\S+) AS (\S+)$", text, flags=re.MULTILINE)
    return {name: (base, body) for base, name, body in zip(found[1::3], found[2::3], found[3::3], strict=True)}


def test_the_dockerfile_is_clean_to_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed")
    run = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_both_images_run_as_a_user_without_rights_and_say_whether_they_are_well(stages, target):
    base, body = stages[target]
    assert base == "runtime" and "USER" not in body
    runtime = stages["runtime"][1]
    (user,) = re.findall(r"^USER (\d+)$", runtime, flags=re.MULTILINE)
    assert int(user) > 0 and f"--uid {user} " in runtime
    assert "/health'" in runtime.partition("HEALTHCHECK")[2]


def test_commands_of_all_files_have_options_that_there_are(stages, flags):
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "segue.service")
    commands = [
        shlex.split(unit["Service"]["ExecStart"])[2:],
        compose["services"]["segue"]["command"],
        yaml.safe_load(stages["runtime"][1].partition("ENTRYPOINT")[2].splitlines()[0])[2:],
    ]
    used = {word for command in commands for word in command if word.startswith("-")}
    assert used and used <= flags
    assert int(unit["Service"]["TimeoutStopSec"]) > 300


def test_only_the_proxy_is_reached_from_outside_and_the_server_can_write_nothing_but_its_volumes():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert "ports" not in services["segue"] and services["segue"]["read_only"] is True
    assert services["segue"]["cap_drop"] == ["ALL"] and "--api-keys" in services["segue"]["command"]
    assert "reverse_proxy segue:8000" in (DEPLOY / "Caddyfile").read_text()
