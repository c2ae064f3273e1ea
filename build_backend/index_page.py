"""README as the package index shows it, where its relative links would lead nowhere."""

from __future__ import annotations

import re

# A paragraph that is nothing but a figure.
FIGURE = re.compile(
    r"^(?:<picture>.*?</picture>|\[!\[[^]]*\]\([^)]*\)\]\([^)]*\))\n\n", re.DOTALL | re.MULTILINE
)
SOURCE = re.compile(r'(src|srcset)="(?!https?:)([^"]+)"')
IMAGE = re.compile(r"!\[([^]]*)\]\((?!https?:)([^)]+)\)")
LINK = re.compile(r"(?<!!)\[((?:!\[[^]]*\]\([^)]*\)|[^][])*)\]\((?!https?:|#)([^)]+)\)")
FIRST_COMMAND = re.compile(r"^make demo\b", re.MULTILINE)


def index_page(readme: str, name: str, version: str, address: str = "") -> str:
    """``readme`` with absolute links to the tag of ``version`` in the repository at ``address``.

    The addresses are GitHub's, ``ADDRESS/blob/vVERSION/FILE``, which GitLab knows, too. Without an
    ``address`` links become their texts, and figures go. The command that installs a clone becomes
    the one that installs from the index, and the first command in a clone gets a ``git clone``.
    """
    page = readme.replace("pip install /path/to/this/clone", f"pip install {name}")
    if not address:
        return LINK.sub(r"\1", FIGURE.sub("", page))

    address = address.rstrip("/")
    pages = f"{address}/blob/v{version}"
    files = f"{address}/raw/v{version}"
    page = SOURCE.sub(rf'\1="{files}/\2"', page)
    page = IMAGE.sub(rf"![\1]({files}/\2)", page)
    page = LINK.sub(rf"[\1]({pages}/\2)", page)
    clone = f"git clone {address} && cd {address.rpartition('/')[2].removesuffix('.git')}"
    return FIRST_COMMAND.sub(rf"{clone}\n\g<0>", page, count=1)
