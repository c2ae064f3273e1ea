"""Code blocks of Markdown pages, and whether a command printed what its page shows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# What differs between two runs -> what stands for it.
_VARIABLES = (
    (re.compile(r"\b[0-9a-f]{8,}\b"), "HASH"),
    (re.compile(r"(?<![\w.])/[\w./-]+"), "PATH"),
    (re.compile(r"[+-]?\d[\d,.:]*"), "N"),
    (re.compile(r"[-=+|─]{3,}"), "---"),
    (re.compile(r"[ \t]+"), " "),
)


class Block(NamedTuple):
    """A fenced block: its ``language``, the file that its ``title`` names, where it begins."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        content = textwrap.dedent(match["text"])
        yield Block(match["language"], match["title"] or "", content, line)


def without_variables(text: str) -> str:
    """A text with numbers, digests, paths and widths replaced by what stands for them."""
    for pattern, replacement in _VARIABLES:
        text = pattern.sub(replacement, text)
    return "\n".join(line.strip() for line in text.strip().splitlines())


def is_shown(output: str, expected: str) -> bool:
    """Whether an output is what a page shows; ``...`` stands for any text, alone for any lines."""
    lines = without_variables(expected).splitlines()
    patterns = [re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in lines]
    pattern = "".join("(?:.*\n)*" if line == "..." else text for line, text in zip(lines, patterns))
    return re.fullmatch(pattern, without_variables(output) + "\n") is not None
