"""Hooks of MkDocs for documents outside docs/, formulas, and wide tables.

Documents next to docs/ become pages of the site, and links to them are adapted. A link to any other
file of the repository, such as a declared sweep, becomes the name of the file. Formulas become
MathML, which browsers draw without a script. A table is wrapped in a focusable element, so that it
can be scrolled by keyboard.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# Document in the repository -> page of the site.
PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/README.md": "project/measurements.md",
    "third_party/domainbed/README.md": "project/harness.md",
    "domainbed_carft/assets/README.md": "project/embedded-data.md",
    "sweeps/README.md": "reference/sweeps.md",
}
COPIED = [document for document in PAGES if not document.startswith("sweeps/")]
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents next to docs/ as pages."""
    for document in COPIED:
        text = (ROOT / document).read_text(encoding="utf-8")
        files.append(File.generated(config, PAGES[document], content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **arguments: Any) -> str:
    """Replace links between documents by links between pages."""
    page_path = page.file.src_uri
    document = next((d for d in COPIED if PAGES[d] == page_path), f"docs/{page_path}")

    def replace(match: re.Match[str]) -> str:
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        if "://" in target or target.startswith("mailto:"):
            return match.group(0)

        path = posixpath.normpath(posixpath.join(posixpath.dirname(document), target))
        site_path = PAGES.get(path, path[len("docs/") :] if path.startswith("docs/") else "")
        if not site_path:
            return label if (ROOT / path).exists() else match.group(0)
        return f"[{label}]({posixpath.relpath(site_path, posixpath.dirname(page_path))}{anchor})"

    return _LINK.sub(replace, markdown)


# Output of the extension pymdownx.arithmatex for `$...$` and `$$...$$`.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)


def on_page_content(content: str, **arguments: Any) -> str:
    """Replace formulas by MathML, and wrap tables in elements that scroll."""
    content = _BLOCK.sub(lambda match: _mathml(match.group(1), "block"), content)
    content = _INLINE.sub(lambda match: _mathml(match.group(1), "inline"), content)
    return _TABLE.sub(r'<div class="table-scroll" tabindex="0">\g<0></div>', content)


def _mathml(escaped_formula: str, display: str) -> str:
    mathml: str = convert(html.unescape(escaped_formula), display=display)
    return f'<div class="formula" tabindex="0">{mathml}</div>' if display == "block" else mathml
