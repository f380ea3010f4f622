"""README and guides keep their word: the blocks of a page run, in order, in one folder that starts empty, and README's
tree equals the disk.

All pages but docs/extend.md, which tests/house/test_extend.py follows. python blocks are executed, and a ```text block
that follows is what they print (`...` stands for anything). In console and bash blocks the lines that begin with
`segue ` are run, of which there is one at least. `<!-- no-run: reason -->` on the line above exempts a block.
The tree is a block whose first line is `src/segue/`, two spaces per level, a name and then what it is for.
"""

import contextlib
import doctest
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).parents[2]
GUIDES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.name != "extend.md")
PAGES = ("README.md", *GUIDES)
SHELL = ("bash", "console")
FENCE = re.compile(r"(?P<above>[^\n]*)\n```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    line: int
    exempt: bool
    output: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page in order; `output` is the text block that follows with nothing in between."""
    text = "\n" + text
    found = list(FENCE.finditer(text))
    result = []
    for fence, after in zip(found, [*found, None][1:], strict=True):
        is_output = (
            after and after["language"] == "text" and not text[fence.end() : after.start("language") - 3].strip()
        )
        exempt = re.fullmatch(r"<!-- no-run: \S.* -->", fence["above"]) is not None
        line = text.count("\n", 0, fence.start("language"))
        result.append(Block(fence["language"], fence["body"], line, exempt, after["body"] if is_output else None))
    return result


def run_python(block: Block) -> None:
    """Execute a block; its printed text must be the one promised, if one is."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.body, f"README.md:{block.line}", "exec"), {"__name__": "__readme__"})  # noqa: S102
    if block.output is not None:
        same = doctest.OutputChecker().check_output(block.output, printed.getvalue(), doctest.ELLIPSIS)
        assert same, f"README.md:{block.line} prints\n{printed.getvalue()}and promises\n{block.output}"


def commands(block: Block) -> list[list[str]]:
    """The arguments of each `segue` line of a console block, with or without a `$ ` before it."""
    lines = [line.removeprefix("$ ") for line in block.body.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("segue ")]


def tree(block: Block) -> set[str]:
    """Paths that a tree block names, relative to its first line; folders end in /."""
    paths, above = set(), [""]
    for line in block.body.splitlines()[1:]:
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        path = above[depth - 1] + line.split()[0]
        above[depth:] = [path]
        paths.add(path)
    return paths


SAMPLE = """
Look:

```python
print("two\\nlines")
```

```text
two
...
```

<!-- no-run: needs real weights -->
```python
boom()
```

```console
$ segue segment a.png "the dog" -o out/   # a comment
made out/
segue demo
```

```
src/segue/
  media/        frames
    image.py    pictures
  types.py      words
```
"""


def test_blocks_are_read_with_their_output_and_exemption():
    first, output, exempt, console, plan = blocks(SAMPLE)
    assert (first.output, first.line, first.exempt) == ("two\n...\n", 4, False)
    assert (output.language, exempt.exempt, exempt.output) == ("text", True, None)
    assert commands(console) == [["segment", "a.png", "the dog", "-o", "out/"], ["demo"]]
    assert tree(plan) == {"media/", "media/image.py", "types.py"}


def test_a_block_that_prints_something_else_fails():
    run_python(Block("python", "print('two'); print('lines')", 1, False, "two\n...\n"))
    with pytest.raises(AssertionError, match=r"prints\s+one\s+and promises\s+two"):
        run_python(Block("python", "print('one')", 1, False, "two\n"))


BLOCKS = {page: blocks((ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
README = BLOCKS["README.md"]


def test_readme_shows_python_and_commands():
    assert {"python"} <= {block.language for block in README if not block.exempt}
    assert any(commands(block) for block in README if block.language in SHELL)


def test_what_looks_like_a_command_is_run_or_says_why_not():
    for page in BLOCKS:
        for block in BLOCKS[page]:
            if block.language in SHELL and not block.exempt:
                assert commands(block), f"{page} line {block.line}"


RUN = [page for page in BLOCKS if any(not b.exempt and b.language in (*SHELL, "python") for b in BLOCKS[page])]


@pytest.mark.parametrize("page", RUN)
def test_blocks_of_a_page_do_what_they_say_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in (block for block in BLOCKS[page] if not block.exempt):
        if block.language == "python":
            run_python(block)
        elif block.language in SHELL:
            for arguments in commands(block):
                run = warm.run("segue", *arguments)
                told = f"{page} line {block.line}: segue {shlex.join(arguments)}\n{run.stdout}{run.stderr}"
                assert run.returncode == 0, told


def test_readme_tree_equals_the_disk(root):
    package = root / "src" / "segue"
    for block in (block for block in README if block.body.startswith("src/segue/")):
        named = tree(block)
        folders = {"", *(path.rsplit("/", 1)[0] + "/" for path in named if "/" in path.rstrip("/"))}
        on_disk = {
            path.relative_to(package).as_posix() + ("/" if path.is_dir() else "")
            for folder in folders
            for path in (package / folder).iterdir()
            if path.name not in ("__pycache__", "py.typed")
        }
        assert named == on_disk
