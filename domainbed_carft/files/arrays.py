"""Arrays of equal length and facts about them, in one compressed .npz file without pickle.

`numpy.load` opens such a file, too.
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
    """Write one-dimensional ``arrays`` of equal length, and JSON ``facts``, whole or not at all.

    Equal content makes equal files. Raises CarftError if the file cannot be written.
    """

    columns: dict[str, Any] = dict(arrays)

    def write_archive(part: Path) -> None:
        with part.open("wb") as file:  # a file object: numpy adds .npz to a name
            np.savez_compressed(file, **columns)
        with zipfile.ZipFile(part, "a") as archive:
            member = zipfile.ZipInfo(FACTS)  # without today's date
            archive.writestr(member, json.dumps(facts, sort_keys=True), zipfile.ZIP_DEFLATED)

    files.save(path, write_archive)


def load_facts(path: Path) -> dict[str, Any]:
    """The facts that `save_arrays` wrote; the arrays are not read.

    Raises CarftError for a file that is missing, damaged or not one of ours.
    """
    facts, _ = load_arrays(path, {}, "")
    return facts


def load_arrays(
    path: Path, dtypes: Mapping[str, np.dtype[Any]], length_key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts, and one array (N,) for each name in ``dtypes``; other arrays are not read.

    ``length_key``: the key of the facts that has N. Raises CarftError for a file that is missing,
    damaged or not one of ours.
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
