"""Trees with a benchmark's folders: with its counts, of next to nothing, or of real pictures."""

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


def photographs(root: Path, each: int) -> tuple[int, list[str]]:
    """root/PACS with so many JPEGs of 500 x 400 of each class and environment.

    They take as long to decode as photographs: quality 75, some 30 KB. A class has its colour.
    Returns the number of pictures, and the classes.
    """
    import numpy as np
    from PIL import Image

    known = benchmarks.get("PACS")
    random = np.random.default_rng(0)
    for environment in known.environments:
        for label, name in enumerate(known.classes):
            folder = root / known.folder / environment.folder / name
            folder.mkdir(parents=True)
            colour = np.random.default_rng(label).integers(60, 196, 3)
            for number in range(each):
                shapes = random.normal(colour, 60, (10, 12, 3)).clip(0, 255).astype(np.uint8)
                large = Image.fromarray(shapes).resize((500, 400), Image.Resampling.BICUBIC)
                noisy = np.asarray(large) + random.normal(0, 8, (400, 500, 1))
                picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
                picture.save(folder / f"{number:03}.jpg", quality=75)
    return each * len(known.environments) * len(known.classes), list(known.classes)
