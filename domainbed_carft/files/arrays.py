"""Arrays of equal length and facts about them, in a compressed .npz file without pickle.

`numpy.load` can also open the file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft import files
from domainbed_carft.errors import CarftError, brief

FACTS = "facts.json"


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays and facts to a file, atomically; equal content makes equal files.

    Args:
        path: the file.
        arrays: arrays (N,), by name.
        facts: JSON values, by name.

    Raises:
        CarftError: if the file cannot be written.
    """

    columns: dict[str, Any] = dict(arrays)

    def write_archive(part: Path) -> None:
        with part.open("wb") as file:  # numpy would add .npz to a path
            np.savez_compressed(file, **columns)
        with zipfile.ZipFile(part, "a") as archive:
            member = zipfile.ZipInfo(FACTS)  # without today's date
            archive.writestr(member, json.dumps(facts, sort_keys=True), zipfile.ZIP_DEFLATED)

    files.save(path, write_archive)


def load_arrays(
    path: Path, dtypes: Mapping[str, np.dtype[Any]], length_key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the facts and some of the arrays of a file that `save_arrays` wrote.

    Args:
        path: the file.
        dtypes: expected types of the arrays to read, by name.
        length_key: key of the facts that holds N.

    Returns:
        The facts, and arrays (N,) by name.

    Raises:
        CarftError: if the file is missing, damaged, or was not written by `save_arrays`.
    """
    try:
        with files.open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            facts = dict(json.loads(archive[FACTS]))
            arrays = {name: archive[name] for name in dtypes}
            for name, dtype in dtypes.items():
                array = arrays[name]
                if array.dtype != dtype or array.shape != (facts[length_key],):
                    raise ValueError(f"{name} has {array.shape} values of {array.dtype}")
    except OSError as error:
        raise CarftError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy, zipfile and zlib raise a dozen types
        raise CarftError(
            f"{path} is damaged, or was not written by carft evaluate ({brief(error)}); delete it"
        ) from error
    return facts, arrays
