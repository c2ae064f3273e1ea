"""JSON and YAML, read without surprises."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
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
        found = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
        if not is_deep(found):
            return found
    raise ValueError(f"the JSON is nested more than {_DEPTH} levels deep")


def is_deep(value: Any, levels: int = _DEPTH) -> bool:
    """Whether JSON has more levels than a person writes, some of which Python cannot print."""
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return not levels or any(is_deep(one, levels - 1) for one in inner)


def parse_yaml(text: str) -> tuple[Any, dict[YamlPath, int]]:
    """Plain data of YAML 1.2, and the line of each path in it: ``("hparams", "lr")``, say.

    ``off`` is a word and ``1e-5`` a number. Raises ValueError, with ``LINE: `` in front, for text
    that is not YAML, repeated keys, tags, aliases, of which a few lines can expand to all of the
    memory, and more levels than a person writes.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = YAML(typ="safe", pure=True)
    try:
        node = reader.compose(text)
        lines: dict[YamlPath, int] = {(): 1}
        return None if node is None else _plain(node, (), lines), lines
    except RecursionError:
        raise ValueError("1: the file has too many levels of lists and mappings") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{mark.line + 1 if mark else 1}: this is not YAML: {why}") from error
    except YAMLError as error:  # a character that YAML has no place for
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ValueError(f"{line}: this is not YAML: {' '.join(str(error).split())}") from error


def _plain(node: Any, path: YamlPath, lines: dict[YamlPath, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if node.anchor or len(path) > _DEPTH or len(lines) > _YAML_NODES:
        fault = "an anchor for aliases" if node.anchor else f"more than {_DEPTH} levels deep"
        fault = f"more than {_YAML_NODES:,} values" if len(lines) > _YAML_NODES else fault
        raise ValueError(f"{line}: this is {fault}, which is not supported")
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
