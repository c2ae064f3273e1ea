"""From what the page says to its HTML, by the template in ``assets/report``."""

from __future__ import annotations

import base64
import re
from typing import Any

from domainbed_carft import __version__, text
from domainbed_carft.report.content import Content
from domainbed_carft.report.figures.drawn import Drawn

GENERATOR = "domainbed-carft"


def render(content: Content) -> str:
    """One page that needs nothing from anywhere else: styles, script and pictures are in it."""
    environment = text.templates(autoescape=True)
    environment.filters["light"] = lambda drawn: _uri(drawn.svg)
    environment.filters["dark"] = lambda drawn: _uri(drawn.dark_svg)
    environment.filters["breakable"] = _breakable
    environment.filters["percent"] = lambda share: f"{100 * share:.0f}%"
    environment.globals["size"] = size
    template = environment.get_template("report/page.html.j2")
    return template.render(page=content, generator=GENERATOR, version=__version__)


def _breakable(name: str) -> Any:
    """A name that may be broken before its capitals."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[a-z])(?=[A-Z])", name))


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def size(drawn: Drawn) -> dict[str, Any]:
    """Width and height in px, so that nothing moves while the page is laid out."""
    head = drawn.svg[: drawn.svg.index(">")]
    box = head.split('viewBox="')[1].split('"')[0].split()
    return {"width": round(float(box[2])), "height": round(float(box[3]))}
