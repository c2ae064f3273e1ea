"""A strict reader of YAML 1.2, and a check for repeated keys in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import CarftError

YamlPath = tuple["str | int", ...]  # keys and list indices from the top of the file

# Converters of YAML's plain scalars, by the last part of their tags.
_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "timestamp": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0 if text[:2] in ("0x", "0o") else 10),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


class _YamlError(ValueError):
    """Invalid or unsupported YAML."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(frozen=True)
class YamlSource:
    """Positions of the values in a YAML file."""

    name: str  # of the file
    lines: Mapping[YamlPath, int]  # by path, such as ("hparams", "lr"); the first line is 1

    def place(self, path: YamlPath) -> str:
        """Format a path for messages: ``sweep.yaml:9: overrides[0].hparams.lr``.

        If the path is not in the file, the line is the line of its innermost part that is.
        """
        prefixes = (path[:length] for length in range(len(path), -1, -1))
        line = next(self.lines[prefix] for prefix in prefixes if prefix in self.lines)
        keys = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
        place = f"{self.name}:{line}"
        return f"{place}: {keys.lstrip('.')}" if path else place


def parse_yaml(text: str, name: str) -> tuple[Any, YamlSource]:
    """Parse YAML 1.2 text into plain data.

    ``off`` is a word and ``1e-5`` a number. Keys remain text exactly as written, because names of
    folders are made from them.

    Args:
        text: the content of the file.
        name: the name of the file, for messages.

    Returns:
        The data, and the positions of the values.

    Raises:
        CarftError: with the line, for invalid YAML, repeated keys, tags, and aliases (a few lines
            of which can expand to fill the memory).
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    lines: dict[YamlPath, int] = {(): 1}
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        value = None if node is None else _plain_value(node, (), lines)
        return value, YamlSource(name, lines)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        reason = " ".join(part for part in (error.context, error.problem) if part)
        message = f"this is not YAML: {reason}"
    except YAMLError as error:  # a character that YAML does not allow
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        message = f"this is not YAML: {' '.join(str(error).split())}"
    except _YamlError as error:
        line = error.line
        message = error.message
    raise CarftError(f"{name}:{line}: {message}")


def _plain_value(node: Any, path: YamlPath, lines: dict[YamlPath, int]) -> Any:
    """Convert one of ruamel's nodes, and record the lines of all paths in it."""
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if node.anchor:
        raise _YamlError(line, "this is an anchor for aliases, which is not supported")

    kind = str(node.tag).rpartition(":")[2]
    if kind == "seq":
        return [_plain_value(item, (*path, i), lines) for i, item in enumerate(node.value)]
    if kind == "map":
        return _plain_mapping(node, path, lines)
    if kind not in _SCALARS:
        raise _YamlError(line, f"the tag {node.tag} is not supported; remove it")

    try:
        return _SCALARS[kind](node.value)
    except ValueError:
        raise _YamlError(line, f"{node.value[:20]!r} cannot be read as a number") from None


def _plain_mapping(node: Any, path: YamlPath, lines: dict[YamlPath, int]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        key_path = (*path, key.value)
        if not isinstance(key.value, str):
            raise _YamlError(line, "a key is a list or a mapping; expected a word")
        if key.value in mapping:
            first_line = lines[key_path]
            raise _YamlError(
                line, f"the key {key.value!r} appears twice, first in line {first_line}; keep one"
            )

        lines[key_path] = line
        mapping[key.value] = _plain_value(value, key_path, lines)
    return mapping


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Convert a JSON object's pairs, for `json.loads`; raise ValueError for a repeated key."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} appears twice; keep one")
    return mapping
