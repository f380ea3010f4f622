import ast
import importlib

from segue.registry import Table


def test_every_line_of_every_table_resolves(trees):
    homes = [
        name
        for name, tree in trees.items()
        if any(isinstance(node, ast.Call) and ast.unparse(node.func) == "Table" for node in ast.walk(tree))
    ]
    tables = [
        value for home in homes for value in vars(importlib.import_module(home)).values() if isinstance(value, Table)
    ]
    assert {table.kind for table in tables} >= {"command", "model family"}
    for table in tables:
        for name in table:
            assert table[name] is not None, f"{table.kind} {name}"
