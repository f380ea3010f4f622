"""What must not stand in src, as code; words in comments and docstrings are free."""

import ast
from collections.abc import Iterator

import pytest

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
CALLS = {"eval", "exec", "torch.load", "os.system", "os.popen"}
KEYWORDS = {("strict", False), ("shell", True), ("allow_pickle", True)}


def offences(tree: ast.AST) -> Iterator[str]:
    """What a tree does that no module may do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name.split(".")[0] in MODULES)
            yield from (f"import {name}" for alias in node.names if (name := f"{names[0]}.{alias.name}") in CALLS)
        elif isinstance(node, ast.Call):
            yield from _in_call(node)
        elif isinstance(node, ast.Name | ast.Attribute | ast.arg):
            name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
            if name == "trust_remote_code":
                yield name


def _in_call(node: ast.Call) -> Iterator[str]:
    function = ast.unparse(node.func)
    if function in CALLS:
        yield f"{function}()"
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        # zip(strict=False) is about lengths, not about weights
        if keyword.arg == "trust_remote_code" or ((keyword.arg, value) in KEYWORDS and function != "zip"):
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import pickle", ["import pickle"]),
        ("from pickle import loads", ["import pickle"]),
        ("from torch import load", ["import torch.load"]),
        ("torch.load(path, weights_only=True)", ["torch.load()"]),
        ("net.load_weights(state, strict=False)", ["strict=False"]),
        ("AutoModel.from_pretrained(name, trust_remote_code=x)", ["trust_remote_code=x"]),
        ("def f(trust_remote_code): pass", ["trust_remote_code"]),
        ("subprocess.run(text, shell=True)", ["shell=True"]),
        ("eval(text)", ["eval()"]),
        ("model.eval()", []),
        ("zip(a, b, strict=False)", []),
        ("'pickle, eval(x), torch.load(x)'", []),
        ("np.load(path, allow_pickle=False)", []),
    ],
)
def test_offences_are_told_from_words_and_namesakes(code, expected):
    assert list(offences(ast.parse(code))) == expected


def test_src_neither_executes_text_nor_loads_loosely(trees):
    assert [f"{name}: {offence}" for name, tree in trees.items() for offence in offences(tree)] == []


def test_only_the_loud_loader_fills_modules(trees):
    callers = {
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "load_state_dict"
    }
    assert callers <= {"segue.weights"}
