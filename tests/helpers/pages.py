"""The fenced blocks of documentation pages."""

import re
import textwrap
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced block of a page, whose `title` names the file that it is."""

    language: str
    title: str
    text: str
    line: int


def blocks(page):
    """The fenced blocks of a page, in order."""
    fence = re.compile(
        r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n"
        r"(?P<text>.*?)^(?P=indent)```$",
        re.MULTILINE | re.DOTALL,
    )
    text = page.read_text(encoding="utf-8")
    for match in fence.finditer(text):
        content = textwrap.dedent(match["text"])
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match["language"], match["title"] or "", content, line)
