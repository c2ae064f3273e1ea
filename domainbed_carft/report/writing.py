"""The folder of a report: index.html and figures/, each file written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.report import page
from domainbed_carft.report.content import Content
from domainbed_carft.report.figures.drawn import Drawn

INDEX = "index.html"
FIGURES = "figures"
_OURS = f'<meta name="generator" content="{page.GENERATOR} '
# Until all figures are there: a report that was broken off is known for one, and can be made anew.
_BEGUN = f'<!doctype html>\n{_OURS}begun">\n<title>A report that was not finished</title>\n'
_LINK = re.compile(rf'href="({FIGURES}/[A-Za-z0-9_.-]+\.(?:png|svg))"')


def require_place(folder: Path) -> None:
    """Raise CarftError unless ``folder`` can take a report: new, empty, or an earlier report's."""
    try:
        there = sorted(os.listdir(folder))
    except FileNotFoundError:
        there = []
    except OSError as error:
        raise _unwritable(folder, error) from error
    if there and not _is_report(folder):
        raise CarftError(
            f"--output {folder} is a folder with other files ({', '.join(there[:3])}"
            f"{', ...' * (len(there) > 3)}), and no report is there; expected a new or empty "
            "folder, or that of an earlier report"
        )
    try:
        for place in {_existing(folder), _existing(folder / FIGURES)}:
            with tempfile.TemporaryFile(dir=place):
                pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _existing(folder: Path) -> Path:
    """The folder, or what is there of its path: nothing is made before there is a report."""
    return next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))


def _is_report(folder: Path) -> bool:
    """Whether a report is there, or was begun."""
    return os.path.exists(folder / INDEX) and _OURS in _text(folder / INDEX)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def write(folder: Path, content: Content) -> Path:
    """Write the page and its figures; the path of the page.

    Figures that an earlier page had, and this one has not, are removed. Nothing else is.
    """
    html = page.render(content)
    earlier = set(_LINK.findall(_text(folder / INDEX)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / INDEX).exists():
            _put(folder / INDEX, _BEGUN.encode())
        (folder / FIGURES).mkdir(exist_ok=True)
        for drawn in figures(content):
            _put(folder / FIGURES / f"{drawn.name}.svg", drawn.svg.encode())
            _put(folder / FIGURES / f"{drawn.name}.png", drawn.png)
        # Halves of characters, which names may have, are in no encoding.
        _put(folder / INDEX, html.encode("utf-8", "backslashreplace"))
        for name in sorted(earlier.difference(_LINK.findall(html))):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder / INDEX


def figures(content: Content) -> list[Drawn]:
    """Those of all sections, in the order of the page."""
    return [
        shown.drawn
        for section in content.sections
        for part in section.parts
        for shown in part.figures
    ]


def _put(path: Path, content: bytes) -> None:
    files.write(path, lambda temporary: temporary.write_bytes(content))


def _unwritable(folder: Path, error: OSError) -> CarftError:
    where = f": {error.filename}" if error.filename else ""
    return CarftError(
        f"--output {folder} cannot be written ({error.strerror}{where}); expected a folder in "
        "which files can be made, with room on its disk"
    )
