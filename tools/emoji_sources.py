"""Reads the four emoji styles from npm packages, as pictures and as a catalogue.

The packages, installed into one folder (its `node_modules` is what the functions take):

    npm install emoji-datasource-google@16.0.0
    npm install emoji-datasource-twitter@16.0.0
    npm install openmoji@17.0.0
    npm install @lobehub/fluent-emoji-3d@1.1.0

OpenMoji's metadata gives names (CLDR short names) and Unicode sub-groups for all of them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from emoji_concepts import Concept, plain
from PIL import Image

SIZE = 64

#: Domain -> folder below node_modules with one file an emoji.
FOLDERS = {
    "fluent3d": "@lobehub/fluent-emoji-3d/assets",
    "line": "openmoji/black/svg",
    "noto": "emoji-datasource-google/img/google/64",
    "twemoji": "emoji-datasource-twitter/img/twitter/64",
}
_METADATA = "openmoji/data/openmoji.json"


def emoji_key(name: str) -> str:
    """One spelling for code points: the packages differ in case, joiner and U+FE0F."""
    parts = name.lower().replace("_", "-").split("-")
    return "-".join(part for part in parts if part != "fe0f")


def read_catalogue(node_modules: Path) -> list[Concept]:
    """All Unicode emoji without skin tones, in Unicode's order.

    OpenMoji's own inventions (groups "extras-...") are left out: their names are not CLDR's,
    so that a variant of a held-out thing could not be told by its name.
    """
    entries = json.loads((node_modules / _METADATA).read_text(encoding="utf-8"))
    concepts = {}
    for entry in entries:
        if entry["skintone"] or entry["group"].startswith("extras"):
            continue
        key = emoji_key(entry["hexcode"])
        concepts[key] = Concept(key, plain(entry["annotation"]), entry["subgroups"])
    return list(concepts.values())


def list_files(node_modules: Path) -> dict[str, dict[str, Path]]:
    """Domain -> emoji key -> file.

    Raises:
        FileNotFoundError: a package is missing; the message says which folder.
    """
    files = {}
    for domain, folder in FOLDERS.items():
        root = node_modules / folder
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; see the npm install lines above")
        files[domain] = {emoji_key(path.stem): path for path in sorted(root.iterdir())}
    return files


def complete_keys(files: dict[str, dict[str, Path]], keys: Iterable[str]) -> set[str]:
    """Those of `keys` that every style has drawn."""
    return {key for key in keys if all(key in drawn for drawn in files.values())}


def read_picture(path: Path) -> np.ndarray:
    """The picture on white: uint8, shape (SIZE, SIZE, 3)."""
    if path.suffix == ".svg":
        import resvg_py  # only building needs it, and checking and training import this module

        data = resvg_py.svg_to_bytes(
            svg_path=str(path), width=SIZE, height=SIZE, background="#ffffff"
        )
        picture = Image.open(io.BytesIO(bytes(data)))
    else:
        picture = Image.open(path)
    rgba = picture.convert("RGBA")
    if rgba.size != (SIZE, SIZE):
        # Premultiplied, lest the colour hidden under transparent pixels bleed into the edge.
        rgba = rgba.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        rgba = rgba.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
