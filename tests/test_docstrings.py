"""Docstring sections are written one way.

Entries of `Args`, `Attributes` and `Raises` begin in lower case, `Returns` and `Yields` in upper
case. Names, acronyms and code stay as they are.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).parents[1]
FOLDERS = ("domainbed_carft", "third_party", "examples", "benchmarks", "tools", "build_backend")
LISTS = ("Args", "Attributes", "Raises")
TEXTS = ("Returns", "Yields")
# Names with one capital letter. Acronyms and CamelCase are known by their letters.
NAMES = {"False", "None", "Pillow", "Python", "True", "Unicode", "Wilson"}


class Beginning(NamedTuple):
    """The beginning of an entry in a docstring's section."""

    section: str
    line: int  # of the file, from 0
    column: int
    word: str

    @property
    def expected(self) -> str:
        """The word as the section begins it."""
        return lower_first(self.word) if self.section in LISTS else upper_first(self.word)


def lower_first(word: str) -> str:
    """Begin a word in lower case, unless it is a name, an acronym or code."""
    is_acronym = re.search(r"[A-Z0-9_]", word[1:]) or (len(word) == 1 and word not in ("A", "I"))
    if is_acronym or word.removesuffix("'s") in NAMES:
        return word
    return word[:1].lower() + word[1:]


def upper_first(word: str) -> str:
    """Begin a word in upper case, unless it is code."""
    return word if "_" in word else word[:1].upper() + word[1:]


def find_beginnings(source: str) -> Iterator[Beginning]:
    """Find the beginnings of all entries in the sections of a file's docstrings."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            text = node.body[0]
            yield from _find_in_lines(lines, text.lineno - 1, text.end_lineno)


def _find_in_lines(lines: list[str], first: int, end: int) -> Iterator[Beginning]:
    section = ""
    indentation = 0
    is_expected = False  # the section's text has not begun
    for number in range(first, end):
        line = lines[number]
        header = re.fullmatch(r"( *)(\w+):\s*", line)
        if header and header[2] in (*LISTS, *TEXTS):
            section, indentation, is_expected = header[2], len(header[1]), True
            continue
        depth = len(line) - len(line.lstrip())
        if not section or not line.strip():
            continue
        if depth <= indentation:
            section = ""
            continue

        # An entry is "name: text", "name, other: text" or "name (type): text".
        pattern = r"( *[*\w`., ]+(?:\([^)]*\))?: +)" if section in LISTS else "( *)"
        entry = re.match(rf"{pattern}([A-Za-z][\w'-]*)?", line)
        if depth == indentation + 4 and entry and (section in LISTS or is_expected):
            if entry[2]:
                yield Beginning(section, number, len(entry[1]), entry[2])
            is_expected = False


@pytest.mark.parametrize("folder", FOLDERS)
def test_entries_of_docstring_sections_begin_in_one_way(folder):
    deviations = [
        f"{path.relative_to(REPO)}:{entry.line + 1}: {entry.word}, expected {entry.expected}"
        for path in sorted((REPO / folder).rglob("*.py"))
        for entry in find_beginnings(path.read_text(encoding="utf-8"))
        if entry.word != entry.expected
    ]
    assert not deviations, "\n".join(deviations)


def test_names_acronyms_and_code_begin_as_they_are_written():
    source = '''
def mean(values, kind, n, model):
    """Return a mean.

    Args:
        values: The values, of which
            Some are nan.
        kind: ``CI`` or another.
        n, m: A count: Numbers of them.
        model (str): CLIP's model, from DomainBed's list.
        name: True for a name.

    Returns:
        the mean of the values, and
        its error.

    Raises:
        CarftError: If there are none.

    Some text: Not an entry.
    """
'''
    deviations = [
        (entry.word, entry.expected)
        for entry in find_beginnings(source)
        if entry.word != entry.expected
    ]
    assert deviations == [("The", "the"), ("A", "a"), ("the", "The"), ("If", "if")]
