"""Small enough to read, and nothing said twice."""

import ast
from collections import defaultdict

FUNCTION_LINES = 80
FILE_LINES = 600
RUN = 12


def repeats(texts: dict[str, str], run: int) -> list[list[str]]:
    """Places ("file:line") whose next `run` lines are equal; blank lines, comments, imports and indentation do not
    count.
    """
    places = defaultdict(list)
    for name, text in texts.items():
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        imports = {number for node in nodes for number in range(node.lineno, (node.end_lineno or 0) + 1)}
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in imports]
        lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
        for start in range(len(lines) - run + 1):
            window = lines[start : start + run]
            places[tuple(line for _, line in window)].append(f"{name}:{window[0][0]}")
    return [found for found in places.values() if len(found) > 1]


def test_a_repeat_is_found_across_blank_lines_and_indentation():
    once = "\n".join(f"a{i} = {i}" for i in range(RUN))
    again = "if x:\n" + "\n\n".join(f"    a{i} = {i}" for i in range(RUN))
    assert repeats({"one": once, "two": again}, RUN) == [["one:1", "two:2"]]
    assert repeats({"one": once, "two": again.replace("a5", "b5")}, RUN) == []


def test_no_run_of_lines_stands_twice(sources):
    assert repeats({name: file.read_text(encoding="utf-8") for name, file in sources.items()}, RUN) == []


def test_no_function_is_longer_than_a_page(trees):
    functions = [
        (f"{name}.{node.name}", node.end_lineno - node.lineno + 1)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(name, lines) for name, lines in functions if lines > FUNCTION_LINES] == []


def test_no_file_is_longer_than_can_be_held_in_mind(sources):
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in sources.items()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}
