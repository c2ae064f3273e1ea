"""YAML text to plain data that knows its line numbers.

Values mean what YAML 1.2 says, not PyYAML's 1.1: ``off`` is a word (``amp: off``) and ``1e-5`` a
number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from domainbed_carft.errors import raise_for
from domainbed_carft.sweep.problems import Path, Problem

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NULL = re.compile(r"null|Null|NULL|~|")


def read(text: str, name: str) -> tuple[Any, dict[Path, int], list[Problem]]:
    """The data, the line of each path in it, and what is wrong with it as YAML.

    Raises CarftError with line and column where the text cannot be parsed at all.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise_for([f"{name}:{at}: this is not YAML: {why}"])
    except yaml.YAMLError as error:  # a character that YAML has no place for
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise_for([f"{name}:{line}: this is not YAML: {' '.join(str(error).split())}"])
    reader = _Reader()
    data = None if node is None else reader.plain(node, (), ())
    return data, reader.lines, reader.problems


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {(): 1}
        self.problems: list[Problem] = []

    def plain(self, node: yaml.Node, path: Path, above: tuple[yaml.Node, ...]) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node in above:
            self.problems.append(Problem(path, "the alias is inside what it stands for"))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            below = (*above, node)
            return [self.plain(v, (*path, index), below) for index, v in enumerate(node.value)]
        return _scalar(node)

    def _mapping(
        self, node: yaml.MappingNode, path: Path, above: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(path, "a key is a list or a mapping, expected a word"))
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in result:
                first = self.lines[inner]
                self.lines[inner] = line
                text = f"the key is there twice, first in line {first}; keep one"
                self.problems.append(Problem(inner, text, breaks=False))
                continue
            self.lines[inner] = line
            result[key] = self.plain(value_node, inner, above)
        return result


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) is not None:  # quoted, or a block of text
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
