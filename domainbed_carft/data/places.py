"""What a data set that is asked for is called, and the folder that it is in."""

from __future__ import annotations

import os
from pathlib import Path

from domainbed_carft.data import benchmarks
from domainbed_carft.data.benchmarks import Benchmark
from domainbed_carft.data.comparison import listed
from domainbed_carft.errors import CarftError


def place(name_or_path: str, data_dir: Path | None) -> tuple[str, Path]:
    """Name and folder of a benchmark below ``data_dir``, or of a folder.

    What is given by its path is nobody's benchmark. Raises CarftError where there is no such
    benchmark or folder.
    """
    known = benchmarks.BENCHMARKS.get(name_or_path)
    if known is not None:
        return known.name, _of_benchmark(known, data_dir)
    if not os.path.isdir(name_or_path):
        if os.path.exists(name_or_path):
            raise CarftError(f"{name_or_path!r} is a file, expected the folder of the environments")
        raise CarftError(
            f"{name_or_path!r} is neither a benchmark nor a folder; "
            f"{benchmarks.nearest(name_or_path)}"
        )
    return name_or_path, Path(name_or_path)


def _of_benchmark(known: Benchmark, data_dir: Path | None) -> Path:
    if not known.folder:
        from domainbed_carft.plugin import emoji_styles  # imports torchvision

        return emoji_styles.unpacked()
    if data_dir is None:
        raise CarftError(
            f"{known.name} is looked for below a data folder: give --data_dir, the folder that has "
            f"{known.folder!r} in it"
        )
    root = data_dir / known.folder
    if os.path.isdir(root):
        return root
    if os.path.exists(root):
        raise CarftError(
            f"{root} is a file, expected the folder of {known.name}; if it is the archive, unpack "
            f"it, and name the folder that has the environments {known.folder!r}"
        )
    try:
        beside = sorted(os.listdir(data_dir))
    except OSError as error:
        raise CarftError(
            f"{known.name} should be in {root}, but {data_dir} is no folder that can be read "
            f"({error.strerror}); give the --data_dir that has {known.folder!r} in it"
        ) from error
    raise CarftError(
        f"{known.name} should be in {root}, but there is no such folder; "
        f"{data_dir} has {listed(beside, 12) or 'nothing in it'}. Rename the folder, or give "
        "the --data_dir that has it"
    )
