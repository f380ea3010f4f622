"""How many files one answer goes through: fewer are easier to read. The numbers may fall and must not rise unseen."""

import re
from collections import Counter
from pathlib import Path

import warm

MOST = {"command": 15, "load": 10, "engine": 30}


def test_one_call_goes_through_no_more_files_than_before_and_through_those_of_the_reading_list(root):
    run = warm.run(Path(__file__).with_name("trace_call.py"))
    assert run.returncode == 0, run.stderr[-2000:]
    files = dict(line.split()[::-1] for line in run.stdout.splitlines())
    counts = Counter(files.values())
    assert all(counts[part] <= most for part, most in MOST.items()), run.stdout
    readme = (root / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d\. \[`(.+?)`\]", readme, re.MULTILINE)
    assert len(listed) == 9 and set(listed) <= files.keys()
