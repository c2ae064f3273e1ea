"""A hook of MkDocs: formulas become MathML, and wide tables scroll by keys.

Browsers draw MathML without a script. A table is put into an element that takes the focus.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What the extension pymdownx.arithmatex makes of `$...$` and `$$...$$`.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)


def on_page_content(content: str, **arguments: Any) -> str:
    """The page's HTML with each formula as MathML and each table in an element that scrolls."""
    content = _BLOCK.sub(lambda match: _mathml(match.group(1), "block"), content)
    content = _INLINE.sub(lambda match: _mathml(match.group(1), "inline"), content)
    return _TABLE.sub(r'<div class="table-scroll" tabindex="0">\g<0></div>', content)


def _mathml(escaped_formula: str, display: str) -> str:
    mathml: str = convert(html.unescape(escaped_formula), display=display)
    return f'<div class="formula" tabindex="0">{mathml}</div>' if display == "block" else mathml
