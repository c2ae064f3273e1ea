"""The names that a paper's table gives to data sets and methods, from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError, Problem, raise_for
from domainbed_carft.files import parsing
from domainbed_carft.files.parsing import YamlSource
from domainbed_carft.text import unknown


@dataclass(frozen=True)
class DisplayNames:
    """Our name -> the name to print, as LaTeX; what is not listed keeps its own.

    ``methods``: of algorithms, alone or with the setting of their row, such as
    ``CARFT; hparam lr 0.001``.
    """

    methods: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    environments: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> DisplayNames:
    """The names in a YAML file with the keys ``methods``, ``datasets`` and ``environments``.

    Raises CarftError, with the line, for a file that cannot be read or has anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CarftError(f"{path} cannot be read: {error}") from error

    document, source = parsing.parse_yaml(text, str(path))
    keys = [each.name for each in fields(DisplayNames)]
    if not isinstance(document, dict):
        expected = f"a mapping with {', '.join(keys)}"
        raise CarftError(Problem(value=document, expected=expected, place=source.place(())))

    raise_for(
        problem
        for key, names in document.items()
        for problem in _problems(key, names, keys, source)
    )
    return DisplayNames(**{key: dict(names) for key, names in document.items()})


def _problems(key: str, names: Any, valid_keys: list[str], source: YamlSource) -> list[Problem]:
    """What is wrong with a key of the file and the names below it."""
    if key not in valid_keys:
        return [Problem(message=unknown("key", key, valid_keys), place=source.place((key,)))]
    if not isinstance(names, dict):
        expected = "a mapping of names to the names to print"
        return [Problem(value=names, expected=expected, place=source.place((key,)))]

    return [
        Problem(value=name, expected="text", place=source.place((key, original)))
        for original, name in names.items()
        if not isinstance(name, str)
    ]
