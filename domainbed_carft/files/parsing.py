"""JSON and YAML, read without surprises."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from typing import Any

YamlPath = tuple["str | int", ...]  # keys and list indices from the top of the file

_YAML_NODES, _DEPTH = 20_000, 40
_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "timestamp": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0 if text[:2] in ("0x", "0o") else 10),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


def parse_json(text: str | bytes, unique_keys: bool = False) -> Any:
    """The value of JSON text; NaN and Infinity, which Python writes, are accepted.

    Raises ValueError for wrong syntax, deep nesting, a number that is too long, and, with
    ``unique_keys``, a repeated key.
    """
    with contextlib.suppress(RecursionError):
        found = _loaded(text, unique_keys)
        if not is_deep(found):
            return found
    raise ValueError(f"the JSON is nested more than {_DEPTH} levels deep")


def is_deep(value: Any) -> bool:
    """Whether JSON has more levels than a person writes, some of which Python cannot print."""
    level: list[Any] = [[value]]
    for _ in range(_DEPTH):
        inner = (one.values() if type(one) is dict else one for one in level)
        level = [one for values in inner for one in values if type(one) in (dict, list)]
    return bool(level)


def _loaded(text: str | bytes, unique_keys: bool) -> Any:
    import orjson

    if not unique_keys:
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    return json.loads(text, object_pairs_hook=_unique if unique_keys else None)


def parse_yaml(text: str) -> tuple[Any, dict[YamlPath, int]]:
    """Plain data of YAML 1.2, and the line of each path in it: ``("hparams", "lr")``, say.

    ``off`` is a word and ``1e-5`` a number. Raises ValueError, with ``LINE: `` in front, for text
    that is not YAML, repeated keys, aliases to collections, tags, and more values or levels than a
    person writes: a few lines of aliases can expand to all of the memory.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = YAML(typ="safe", pure=True)
    try:
        _require_small(reader.parse(text))
        node = reader.compose(text)
        lines: dict[YamlPath, int] = {(): 1}
        return None if node is None else _plain(node, (), lines), lines
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{mark.line + 1 if mark else 1}: this is not YAML: {why}") from error
    except YAMLError as error:  # a character that YAML has no place for
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ValueError(f"{line}: this is not YAML: {' '.join(str(error).split())}") from error


def _require_small(events: Iterable[Any]) -> None:
    depth, collections = 0, set()
    for count, event in enumerate(events):
        kind = type(event).__name__
        line = event.start_mark.line + 1
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if depth > _DEPTH or count > _YAML_NODES:
            most = f"{_YAML_NODES:,} values and {_DEPTH} levels"
            raise ValueError(f"{line}: the file is too large; expected at most {most}")
        if kind in ("MappingStartEvent", "SequenceStartEvent") and event.anchor:
            collections.add(event.anchor)
        if kind == "AliasEvent" and event.anchor in collections:
            raise ValueError(f"{line}: *{event.anchor} is an alias of a collection; write it out")


def _plain(node: Any, path: YamlPath, lines: dict[YamlPath, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    kind = str(node.tag).rpartition(":")[2]
    if kind == "seq":
        return [_plain(value, (*path, index), lines) for index, value in enumerate(node.value)]
    if kind == "map":
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            inner = (*path, key.value)
            if not isinstance(key.value, str):
                raise ValueError(f"{line}: a key is a list or a mapping; expected a word")
            if key.value in found:
                twice = f"the key {key.value!r} appears twice, first in line {lines[inner]}"
                raise ValueError(f"{line}: {twice}; keep one")
            lines[inner] = line
            found[key.value] = _plain(value, inner, lines)
        return found
    if kind not in _SCALARS:
        raise ValueError(f"{line}: the tag {node.tag} is not supported; remove it")
    try:
        return _SCALARS[kind](node.value)
    except ValueError:
        raise ValueError(f"{line}: {node.value[:20]!r} cannot be read as a number") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice; keep one")
    return found
