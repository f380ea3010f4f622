"""Imports point down: docs/style.md draws the floors. Imports inside functions, under TYPE_CHECKING and as
"module:attribute" text count like any other."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

# Top first. "segue" is the package itself: the public face in __init__.py.
FLOORS = (
    ("cli", "segue"),
    ("serve", "integrations", "evals", "parity", "bench"),
    ("engine", "loading", "train", "jobs"),
    ("answering",),
    ("requests", "encoder", "clean_text"),
    ("prepare", "checkpoints", "datasets", "demo"),
    ("own_data", "synth"),
    ("grounding", "data", "features"),
    ("models", "output"),
    ("media",),
    ("geometry", "weights", "registry", "config", "options"),
    ("types", "errors", "facts", "files", "pickled", "processes", "progress", "reading"),
)
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of what a module imports from this package; `from segue import x` counts as `segue.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor; write segue.room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"segue(\.\w+)+:\w+", str(node.value)):
            yield str(node.value).split(":")[0]


def room(module: str) -> str:
    """The room a dotted name lies in: segue.media.image -> media; segue and segue.load -> segue."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HEIGHT else "segue"


def is_forbidden(here: str, there: str) -> bool:
    """Whether code in the room `here` may not import from the room `there`."""
    never = {("models", "data"), ("data", "models")}
    door = there == "cli" or (there == "serve" and here != "cli")
    return here != there and (HEIGHT[there] > HEIGHT[here] or (here, there) in never or door)


@pytest.fixture(scope="module")
def arrows(trees) -> list[tuple[str, str]]:
    """(importing module, imported name) for every import inside the package."""
    found = [
        (name, target) for name, tree in trees.items() for target in imports(tree) if target.split(".")[0] == "segue"
    ]
    assert len(found) > 20
    return found


@pytest.mark.parametrize(
    ("here", "there", "forbidden"),
    [
        ("cli", "engine", False),
        ("engine", "cli", True),
        ("models", "media", False),
        ("media", "grounding", True),
        ("data", "models", True),
        ("models", "data", True),
        ("evals", "serve", True),
        ("cli", "serve", False),
        ("engine", "segue", True),
    ],
)
def test_the_rule_itself(here, there, forbidden):
    assert is_forbidden(here, there) is forbidden


def test_every_kind_of_import_is_seen():
    tree = ast.parse(
        "import segue.media.video as v\nfrom segue import weights\n"
        "if TYPE_CHECKING:\n    from segue.engine import Engine\n"
        "def late():\n    import segue.cli.main\nTABLE = {'x': 'segue.evals.metrics.masks:score'}\n"
    )
    assert {room(name) for name in imports(tree)} == {"media", "weights", "engine", "cli", "evals"}


def test_every_room_has_a_floor(sources):
    rooms = {name.split(".")[1] for name in sources if name.count(".")}
    assert rooms <= set(HEIGHT), "a new room needs a place in FLOORS and an ADR"


def test_imports_point_down(arrows):
    assert [f"{module} imports {target}" for module, target in arrows if is_forbidden(room(module), room(target))] == []


def test_no_two_rooms_import_each_other(arrows):
    graph: dict[str, set[str]] = {}
    for module, target in arrows:
        if room(module) != room(target):
            graph.setdefault(room(module), set()).add(room(target))
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(("folder", "least"), [("models", 1), ("data", 0)])
def test_no_family_or_dataset_imports_another(root, arrows, folder, least):
    table = Path(root / "src" / "segue" / folder / "__init__.py").read_text(encoding="utf-8")
    entries = set(re.findall(rf'"segue\.{folder}\.(\w+)[\w.]*:\w+"', table))
    assert len(entries) >= least
    inside = {
        (module.split(".")[2], target.split(".")[2])
        for module, target in arrows
        if module.startswith(f"segue.{folder}.") and target.startswith(f"segue.{folder}.")
    }
    assert [(here, there) for here, there in inside if here != there and {here, there} <= entries] == []
