"""The folder of a report: index.html and figures/, written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft import __version__, files, text
from domainbed_carft.errors import CarftError

INDEX = "index.html"
FIGURES = "figures"
_OURS = '<meta name="generator" content="domainbed-carft '
_LINK = re.compile(rf'href="({FIGURES}/[A-Za-z0-9_.-]+\.(?:png|svg))"')


def require_place(folder: Path) -> None:
    """Raise CarftError unless ``folder`` can take a report: new, empty, or an earlier report's."""
    try:
        near = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        with tempfile.TemporaryFile(dir=near):  # nothing is made before there is a report
            names = os.listdir(folder) if near == folder else []
    except OSError as error:
        raise files.not_written(folder, error) from error
    there = sorted(name for name in names if name[0] != ".")
    if there and _OURS not in _earlier(folder):
        raise CarftError(
            f"-o {folder} has other files ({', '.join(there[:3])}{', ...' * (len(there) > 3)}); "
            "expected a new or empty folder, or the folder of an earlier report"
        )


def write(folder: Path, page: Mapping[str, Any]) -> Path:
    """Write what ``building.build`` says, remove outdated figures; the path of the page."""
    environment = text.templates(autoescape=True)
    # Names are anybody's; what is markup already has come through here.
    environment.finalize = lambda value: text.shown(value) if type(value) is str else value
    html = environment.get_template("report/page.html.j2").render(page=page, version=__version__)
    # Halves of characters, which names may have, are in no encoding.
    contents = {INDEX: html.encode("utf-8", "backslashreplace")}
    parts = [part for section in page["sections"] for part in section["parts"]]
    for figure in (figure for part in parts for figure in part["figures"]):
        contents[f"{FIGURES}/{figure.name}.svg"] = figure.svg.encode()
        contents[f"{FIGURES}/{figure.name}.png"] = figure.png
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".carft-", dir=folder) as stage:
            (Path(stage) / FIGURES).mkdir()
            for name, content in contents.items():
                (Path(stage) / name).write_bytes(content)
            gone = {*_LINK.findall(_earlier(folder))}.difference(contents)
            for name in contents:  # the page first: by it the folder is known for a report
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(Path(stage) / name, folder / name)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise files.not_written(folder, error) from error
    return folder / INDEX


def _earlier(folder: Path) -> str:
    page = folder / INDEX
    return page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
