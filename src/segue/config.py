"""YAML and overrides to frozen dataclasses and back, strictly: nothing unknown, missing or of another type gets in.

A field may be a bool, int, float, str or Path, a Literal, another dataclass, a tuple, a dict with str keys, or any of
these or None. A number written without a point (`1`, `2e-5`) is a float where a float is expected. Several of the
plain kinds may stand beside each other (`bool | int | float | str`): the value's own kind decides.

A dataclass may say in `RENAMED` what its keys and their values were called before: {old key: key}, and {key: {old
value: value}}. What is read by an old name is told in a line of the log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from segue.errors import ConfigError
from segue.reading import read_text

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_BYTES = 10_000_000
MAX_DEPTH = 30
"""What a recipe may be at most."""

_SHOWN = 60  # characters of a value that an error shows
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def load(cls: type[T], path: Path | str, overrides: Sequence[str] = ()) -> T:
    """The dataclass that a YAML file describes.

    The file may name one other file under `base:`, relative to itself, whose keys it overrides one by one; a base has
    no base of its own. `overrides` come last, each "dotted.key=value" with the value in YAML; it replaces whatever
    stands at that key, a whole mapping or list included. A number is a place in a list: "stages.0.rate=1e-5".

    Raises: ConfigError, naming the file and the dotted key: a file unreadable, not YAML, not a mapping, or with a key
    twice; a key unknown or missing; a value of another type; what a dataclass finds wrong in its `__post_init__`.
    """
    path = Path(path)
    tree = _read(path)
    if "base" in tree:
        tree = _merge(_read_base(path, tree.pop("base")), tree)
    for override in overrides:
        tree = _override(tree, override)
    try:
        return cast(T, _build(cls, tree, ""))
    except ConfigError as error:
        origin = " ".join([str(path), *(f"--set {override}" for override in overrides)])
        raise ConfigError(f"{origin}: {error}") from error


def from_overrides(cls: type[T], overrides: Sequence[str]) -> T:
    """The dataclass with its defaults and these overrides, each as `load` takes them.

    Raises: ConfigError, as `load` does.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        tree = _override(tree, override)
    return cast(T, _build(cls, tree, ""))


def dump(value: Any) -> str:
    """A dataclass as the YAML text from which `load` makes an equal one; every field is written, defaults too."""
    return yaml.dump(_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ConfigError(f"key {key.value!r} stands twice in one mapping (line {key.start_mark.line + 1})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _RecipeLoader(_Loader):
    """No number that YAML 1.1 reads as another than is written, either: 010 as 8, 1:30 as 90."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number: int = super().construct_yaml_int(node)
        if re.match(r"[-+]?0[0-7_]+$|.*:", node.value):
            raise ConfigError(
                f"{node.value} (line {node.start_mark.line + 1}) would be {number}; write {number}, or quote it"
            )
        return number


_RecipeLoader.add_constructor("tag:yaml.org,2002:int", _RecipeLoader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Plain values only, in the notation that `_Loader` reads."""


# YAML 1.1 takes 2e-5 for text. Both sides must know it as a number, or a text "2e-5" would not survive dump and load.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+"),
        list("-+.0123456789"),
    )


def _parse(text: str, origin: str, loader: type[_Loader] = _RecipeLoader) -> Any:
    try:
        _check_nesting(text)
        return yaml.load(text, Loader=loader)  # noqa: S506  it makes plain values alone
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    # ValueError: a date that does not exist; TypeError: a key that is a list
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{origin} is not valid YAML: {_problem(error)}") from error


def _problem(error: Exception) -> str:
    """What is wrong and where, without the lines of the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return f"{error.problem}{f' at line {mark.line + 1}, column {mark.column + 1}' if mark else ''}"
    return " ".join(str(error).split())[:200]


def _check_nesting(text: str) -> None:
    """Refuse what nests deeply, or repeats parts by aliases, before anything is built of it; no recipe does either.

    Raises: ConfigError; yaml.YAMLError.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else "?"
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"line {line} has the alias *{str(event.anchor)[:40]}; write out what it means")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"it is nested more than {MAX_DEPTH} deep at line {line}")


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of another tool's YAML file: no aliases, no depth, no key twice.

    Raises: ConfigError.
    """
    return _read(path, _Loader)


def _read(path: Path, loader: type[_Loader] = _RecipeLoader) -> dict[str, Any]:
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read {path}: {reason}; give a YAML file") from error
    tree = _parse(text, str(path), loader)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {_short(tree)}, expected a mapping of keys to values")
    return tree


def _read_base(path: Path, base: Any) -> dict[str, Any]:
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is {base!r}, expected one path relative to that file")
    tree = _read(path.parent / base)
    if "base" in tree:
        raise ConfigError(f"{path}: its base {base} has a base itself; name {tree['base']} directly or copy its keys")
    return tree


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(tree: dict[str, Any], override: str) -> dict[str, Any]:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or "" in keys:
        raise ConfigError(f"override {override!r} is not of the form key.subkey=value")
    return dict(_replace(tree, keys, _parse(text, f"--set {override}"), override))


def _replace(tree: Any, keys: list[str], value: Any, override: str) -> Any:
    if isinstance(tree, list) and keys[0].isdecimal() and int(keys[0]) < len(tree):
        place = int(keys[0])
        item = _replace(tree[place], keys[1:], value, override) if keys[1:] else value
        return [*tree[:place], item, *tree[place + 1 :]]
    if not isinstance(tree, dict | None):
        raise ConfigError(
            f"--set {override}: there is no key {keys[0]!r} in {_short(tree)}; set the whole value instead"
        )
    tree = tree or {}
    return {**tree, keys[0]: _replace(tree.get(keys[0]), keys[1:], value, override) if keys[1:] else value}


def _build(cls: type, tree: Any, where: str) -> Any:
    """An instance of a dataclass from a mapping; `where` is the dotted key of the mapping, empty at the top."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} is {_short(tree)}, expected a mapping with the keys {', '.join(_known(cls))}")
    known = _known(cls)
    tree = _renamed(getattr(cls, "RENAMED", {}), tree, where)
    for key in tree:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"unknown key {_join(where, key)!r}{hint} Known here: {', '.join(known)}")
    missing = [_join(where, name) for name, field in known.items() if _is_required(field) and name not in tree]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}; no default exists, give a value")
    hints = get_type_hints(cls)
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in tree.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _renamed(names: Mapping[str, Any], tree: dict[str, Any], where: str) -> dict[str, Any]:
    """The mapping with today's names for keys and values."""
    tree = dict(tree)
    for name, new in names.items():
        if isinstance(new, str) and name in tree and new not in tree:
            log.warning("%s is called %s now; change it where it is written", _join(where, name), new)
            tree[new] = tree.pop(name)
        elif isinstance(new, dict) and isinstance(old := tree.get(name), str) and old in new:
            log.warning("%s: %s is called %s now; change it where it is written", _join(where, name), old, new[old])
            tree[name] = new[old]
    return tree


def _known(cls: Any) -> dict[str, Field[Any]]:
    return {field.name: field for field in fields(cls) if field.init}


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _build(cast(type, kind), value, where)
    if origin in (Union, UnionType):
        return _union(arguments, value, where)
    if origin is Literal:
        return _literal(arguments, value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict and arguments[0] is str:
        return _dict(arguments[1], value, where)
    if kind in _SCALARS:
        return _scalar(kind, value, where)
    raise TypeError(f"{where} is declared as {kind}, which a configuration file cannot express")


def _union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    kinds = [kind for kind in arguments if kind is not NoneType]
    if value is None and len(kinds) < len(arguments):
        return None
    if len(kinds) == 1:
        return _convert(kinds[0], value, where)
    if not all(kind in _SCALARS for kind in kinds):
        raise TypeError(f"{where} may be one of {kinds}, which a configuration file cannot tell apart")
    if type(value) not in kinds:
        raise ConfigError(f"{where} is {_short(value)}, expected {' or '.join(_SCALARS[kind] for kind in kinds)}")
    return value


def _literal(options: tuple[Any, ...], value: Any, where: str) -> Any:
    # 1 == True in Python, but not in a recipe
    if any(value == option and type(value) is type(option) for option in options):
        return value
    raise ConfigError(f"{where} is {_short(value)}, expected one of {', '.join(map(repr, options))}")


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    open_ended = arguments[-1] is Ellipsis
    if not isinstance(value, list) or not (open_ended or len(value) == len(arguments)):
        expected = "a list" if open_ended else f"a list of {len(arguments)} values"
        raise ConfigError(f"{where} is {_short(value)}, expected {expected}")
    kinds = [arguments[0]] * len(value) if open_ended else arguments
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _dict(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{where} is {_short(value)}, expected a mapping with text keys")
    return {key: _convert(kind, item, _join(where, key)) for key, item in value.items()}


def _scalar(kind: type, value: Any, where: str) -> Any:
    fits = {float: (float, int), Path: (str,)}.get(kind, (kind,))
    # bool is a subclass of int, yet `steps: yes` is a mistake
    if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} is {_short(value)}, expected {_SCALARS[kind]}")
    try:
        return kind(value)
    except OverflowError as error:
        raise ConfigError(f"{where} is {_short(value)}, which is larger than any number here") from error


def _short(value: object) -> str:
    """What a value is, without spreading a file that is no recipe over the terminal."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in _known(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
