"""A small copy of PACS's folder tree with synthetic JPEGs, for benchmarks that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from domainbed_carft.data import benchmarks


def write_jpegs(root: Path, images_per_class: int) -> tuple[int, list[str]]:
    """Write root/PACS with JPEGs of 500 x 400 px for each class and environment.

    Decoding takes as long as for photographs: quality 75, about 30 KB. Each class has a colour.
    Returns the number of images and the class names.
    """
    benchmark = benchmarks.get("PACS")
    random = np.random.default_rng(0)
    for environment in benchmark.environments:
        for label, name in enumerate(benchmark.classes):
            folder = root / benchmark.folder / environment.folder / name
            folder.mkdir(parents=True)
            colour = np.random.default_rng(label).integers(60, 196, 3)
            for number in range(images_per_class):
                shapes = random.normal(colour, 60, (10, 12, 3)).clip(0, 255).astype(np.uint8)
                large = Image.fromarray(shapes).resize((500, 400), Image.Resampling.BICUBIC)
                noisy = np.asarray(large) + random.normal(0, 8, (400, 500, 1))
                image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{number:03}.jpg", quality=75)
    n_images = images_per_class * len(benchmark.environments) * len(benchmark.classes)
    return n_images, list(benchmark.classes)
