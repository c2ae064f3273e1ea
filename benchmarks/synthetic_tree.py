"""A tree with the folders and counts of a benchmark, of pictures that cost next to nothing."""

from __future__ import annotations

import io
import os
from pathlib import Path

from domainbed_carft.data import benchmarks

NAME = "DomainNet"


def wanted(scale: float) -> dict[str, dict[str, int]]:
    """environment -> class -> pictures, of a share of DomainNet; at least two a class."""
    known = benchmarks.get(NAME)
    edition = known.editions[0]
    result = {}
    for environment, total in edition.counts.items():
        each, more = divmod(total, len(known.classes))
        even = {name: each + (index < more) for index, name in enumerate(known.classes)}
        counts = edition.by_class.get(environment, even)
        result[environment] = {n: max(2, round(scale * count)) for n, count in counts.items()}
    return result


def pictures(folder: Path, count: int) -> list[Path]:
    """Different JPEGs of 8 to 16 px."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        side = 8 + index % 9
        buffer = io.BytesIO()
        colours = os.urandom(3 * side * side)
        Image.frombytes("RGB", (side, side), colours).save(buffer, "JPEG")
        paths.append(folder / f"{index}.jpg")
        paths[-1].write_bytes(buffer.getvalue())
    return paths


def grow(root: Path, counts: dict[str, dict[str, int]], originals: list[Path]) -> int:
    """Link or copy ``originals`` in turn to environment/class/picture below ``root``."""
    made = 0
    copied = len(originals) > 60_000  # else links: ext4 allows 65,000 to a file
    total = sum(sum(classes.values()) for classes in counts.values())
    for environment, classes in counts.items():
        for name, pictures in classes.items():
            folder = root / environment / name
            folder.mkdir(parents=True)
            for index in range(pictures):
                original = originals[made % len(originals)]
                # Names of the length of DomainNet's, such as clipart_001_000001.jpg.
                path = folder / f"{environment}_{len(name):03}_{index:06}.jpg"
                if copied:
                    path.write_bytes(original.read_bytes())
                else:
                    os.link(original, path)
                made += 1
    assert made == total
    return made
