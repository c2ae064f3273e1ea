"""The folder of a report: index.html and figures/, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from domainbed_carft import files, text
from domainbed_carft.errors import CarftError
from domainbed_carft.report.canvas import Figure
from domainbed_carft.version import __version__

INDEX = "index.html"
FIGURES = "figures"
_GENERATOR = '<meta name="generator" content="domainbed-carft '
_FIGURE_LINK = re.compile(rf'href="({FIGURES}/[A-Za-z0-9_.-]+\.(?:csv|png|svg))"')
_FILES_NAMED = 3  # in a message


def require_place(folder: Path) -> None:
    """Raise CarftError unless ``folder`` can take a report: new, empty, or an earlier report's."""
    ancestors = folder.absolute().parents
    try:
        existing = next(path for path in (folder, *ancestors) if path.exists())
        with tempfile.TemporaryFile(dir=existing):  # nothing is made before there is a report
            names = os.listdir(folder) if existing == folder else []
    except OSError as error:
        raise files.not_written(folder, error) from error

    visible = sorted(name for name in names if name[0] != ".")
    if visible and _GENERATOR not in _earlier_page(folder):
        listing = ", ".join(visible[:_FILES_NAMED])
        if len(visible) > _FILES_NAMED:
            listing += ", ..."
        raise CarftError(
            f"-o {folder} has other files ({listing}); "
            "expected a new or empty folder, or the folder of an earlier report"
        )


def write(folder: Path, page: Mapping[str, Any]) -> Path:
    """Write the page and its figures, and remove figures of an earlier report that it has not.

    ``page``: what ``page.build`` returns. Returns the path of the page; raises CarftError if
    the folder cannot be written.
    """
    contents = {INDEX: _render(page)}
    for figure in _figures(page):
        contents[f"{FIGURES}/{figure.name}.svg"] = figure.svg.encode()
        contents[f"{FIGURES}/{figure.name}.png"] = figure.png
        contents[f"{FIGURES}/{figure.name}.csv"] = figure.csv.encode()

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".carft-", dir=folder) as stage:
            (Path(stage) / FIGURES).mkdir()
            for name, content in contents.items():
                (Path(stage) / name).write_bytes(content)

            if (folder / FIGURES).is_symlink():  # to a folder that is not the report's
                (folder / FIGURES).unlink()
            earlier_figures = {*_FIGURE_LINK.findall(_earlier_page(folder))}
            for name in contents:  # the page first: by it the folder is known for a report
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(Path(stage) / name, folder / name)

        for name in earlier_figures.difference(contents):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise files.not_written(folder, error) from error
    return folder / INDEX


def _figures(page: Mapping[str, Any]) -> Iterator[Figure]:
    """All figures of the page, its legend first."""
    yield page["legend"].figure
    for section in page["sections"]:
        yield from section["lead"]
        for part in section["parts"]:
            yield from part["figures"]


def _render(page: Mapping[str, Any]) -> bytes:
    """The page as HTML."""
    templates = text.templates(autoescape=True)
    # Names are anybody's; what is markup already has come through here.
    templates.finalize = lambda value: text.printable(value) if type(value) is str else value
    html = templates.get_template("report/page.html.j2").render(page=page, version=__version__)

    # Halves of characters, which names may have, are in no encoding.
    return html.encode("utf-8", "backslashreplace")


def _earlier_page(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return files.read_small(folder / INDEX).decode(errors="replace")
    return ""
