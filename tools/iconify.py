"""Reads icons from the npm packages of iconify, as pictures of the size of EmojiStyles'.

The packages, in one folder:

    npm install @iconify-json/emojione-v1@1.2.3 @iconify-json/emojione@1.2.3 \\
        @iconify-json/emojione-monotone@1.2.1 @iconify-json/fxemoji@1.2.2 \\
        @iconify-json/streamline-emojis@1.2.4 @iconify-json/noto-v1@1.2.5 \\
        @iconify-json/fluent-emoji-high-contrast@1.2.6 \\
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/openmoji@1.2.29
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from emoji_sources import SIZE
from PIL import Image

from domainbed_carft.data.emoji_styles import DrawingStyle


def check_package(node_modules: Path, style: DrawingStyle) -> None:
    """Raises ValueError unless npm installed just the package that the style names.

    npm keeps the version and the digest of each archive in `node_modules/.package-lock.json`.
    """
    lock = json.loads((node_modules / ".package-lock.json").read_text(encoding="utf-8"))
    installed = lock["packages"].get(f"node_modules/{style.package}", {})
    found = (installed.get("version"), installed.get("integrity"))
    expected = (style.version, style.integrity)
    if found != expected:
        raise ValueError(f"{style.package}: found {found}, expected {expected}; see npm install")


def read_icons(node_modules: Path, package: str) -> dict[str, Any]:
    """The icons of a package: bodies of SVG, sizes and aliases."""
    path = node_modules / package / "icons.json"
    return json.loads(path.read_text(encoding="utf-8"))


def draw_icon(icons: dict[str, Any], icon_name: str) -> np.ndarray:
    """The icon, black where it has no colour, on white: uint8, (SIZE, SIZE, 3)."""
    import resvg_py  # only building needs it

    alias = icons.get("aliases", {}).get(icon_name, {})
    if strange := alias.keys() - {"parent", "hFlip", "hidden"}:
        raise ValueError(f"the alias {icon_name} has {sorted(strange)}, which are not read")
    icon = icons["icons"][alias.get("parent", icon_name)]
    width, height = (icon.get(name) or icons[name] for name in ("width", "height"))
    side = max(width, height)  # a few icons are a little higher than wide; these are centred

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{(width - side) / 2:g} {(height - side) / 2:g} {side} {side}" '
        f'width="{side}" height="{side}" color="#000000">'
        f"{icon['body']}</svg>"
    )
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="#ffffff")
    picture = Image.open(io.BytesIO(bytes(drawn))).convert("RGB")
    if picture.size != (SIZE, SIZE):
        raise ValueError(f"{icon_name} was drawn {picture.size}, expected {SIZE} x {SIZE} pixels")

    pixels = np.asarray(picture)
    return pixels[:, ::-1] if alias.get("hFlip") else pixels
