"""Requests that schemathesis makes up from the server's own schema: refused or answered, never broken."""

import re
import shutil
import subprocess

import pytest

SCHEMATHESIS = shutil.which("schemathesis")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SCHEMATHESIS is None, reason="there is no schemathesis; pipx install schemathesis"),
]


@pytest.mark.parametrize("seed", range(12))
def test_requests_by_the_schema_never_break_the_server(serve, wordy, tmp_path, seed):
    with serve(wordy, {"deadline_seconds": 10.0}) as server, server.http() as http:
        command = [SCHEMATHESIS, "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error"]
        command += ["--phases", "fuzzing", "--mode", "all", "--max-examples", "50", "--continue-on-failure"]
        command += ["--request-timeout", "60", "--suppress-health-check", "too_slow"]
        done = subprocess.run(
            [*command, "--seed", str(seed), "--no-color"], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        [count] = re.findall(r"([\d,]+) generated", done.stdout)
        assert int(count.replace(",", "")) > 800, done.stdout[-2000:]
        server.wait_idle()
        assert http.get("/ready").status_code == 200
