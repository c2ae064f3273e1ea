"""A small tree with PACS's folders, for the benchmarks that train on JPEGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from domainbed_carft.data import benchmarks


def write_jpegs(root: Path, each: int) -> tuple[int, list[str]]:
    """Write root/PACS with ``each`` JPEGs of 500 x 400 of each class and environment.

    They take as long to decode as photographs: quality 75, some 30 KB. A class has its colour.
    Returns the number of images, and the classes.
    """
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
                image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{number:03}.jpg", quality=75)
    return each * len(known.environments) * len(known.classes), list(known.classes)
