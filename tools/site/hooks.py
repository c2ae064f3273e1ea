"""Hooks of MkDocs for documents outside docs/, formulas, wide tables and drawings, and the footer.

README becomes the home page, the README of the harness a further page, and links to them are
adapted. A link to any other file outside docs/, such as the changelog, becomes the file's name.
Formulas become MathML, which browsers draw without a script. Tables and drawings are wrapped in
focusable elements, so that they can be scrolled by keyboard.
"""

from __future__ import annotations

import html
import posixpath
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from domainbed_carft.version import __version__

ROOT = Path(__file__).resolve().parents[2]
# Document in the repository -> page of the site.
PAGES = {"README.md": "index.md", "third_party/domainbed/README.md": "harness.md"}
# The label can contain an image.
_LINK = re.compile(r"\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_IMAGE_FILE = re.compile(r'(?<=src=")docs/|(?<=srcset=")docs/')


def on_config(config: Any) -> Any:
    """Show the version in the footer, and a link to the repository if it has an address."""
    config.copyright = f"domainbed-carft {__version__}, {config.copyright}"
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    config.repo_url = setup["repository"]["address"] or None
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the documents next to docs/ as pages."""
    for document, page_path in PAGES.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        files.append(File.generated(config, page_path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **arguments: Any) -> str:
    """Replace links between documents by links between pages."""
    page_path = page.file.src_uri
    document = next((d for d, path in PAGES.items() if path == page_path), f"docs/{page_path}")

    def replace(match: re.Match[str]) -> str:
        label, target, anchor = _LINK.sub(replace, match[1]), match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]

        path = posixpath.normpath(posixpath.join(posixpath.dirname(document), target))
        site_path = PAGES.get(path, path[len("docs/") :] if path.startswith("docs/") else "")
        if site_path:
            relative = posixpath.relpath(site_path, posixpath.dirname(page_path))
            return f"[{label}]({relative}{anchor})"
        if not (ROOT / path).exists():
            return match[0]
        return label if posixpath.basename(path) in label else f"{label} (`{path}`)"

    return _IMAGE_FILE.sub("", _LINK.sub(replace, markdown))


# Output of the extension pymdownx.arithmatex for `$...$` and `$$...$$`.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_DRAWING = re.compile(
    r'<p>((?:<a [^>]*>)?(?:<picture>|<img)(?:(?!</p>).)*?\.(?:svg|png)"(?:(?!</p>).)*)</p>',
    re.DOTALL,
)


def on_page_content(content: str, page: Any, **arguments: Any) -> str:
    """Replace formulas by MathML, and wrap tables and drawings in elements that scroll."""
    content = _BLOCK.sub(lambda match: _mathml(match.group(1), "block"), content)
    content = _INLINE.sub(lambda match: _mathml(match.group(1), "inline"), content)
    content = _DRAWING.sub(r'<div class="drawing" tabindex="0">\1</div>', content)
    # On narrow screens, the style sheet shows each row of this page as a block.
    layout = " stacked" if page.file.src_uri == "reference/hyperparameters.md" else ""
    return _TABLE.sub(rf'<div class="table-scroll{layout}" tabindex="0">\g<0></div>', content)


def _mathml(escaped_formula: str, display: str) -> str:
    mathml: str = convert(html.unescape(escaped_formula), display=display)
    return f'<div class="formula" tabindex="0">{mathml}</div>' if display == "block" else mathml
