"""Arrays of equal length and facts about them, in one compressed .npz file without pickle.

It may be a stranger's: `load_arrays` reads no more than the size of the file allows.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from domainbed_carft import files
from domainbed_carft.errors import CarftError, brief
from domainbed_carft.files import parsing

FACTS = "facts"  # the member with the facts: the bytes of their JSON
EARLIER_FACTS = "facts.json"  # up to 0.2.0: the JSON itself

MOST_FACTS = 1 << 20  # bytes of the facts
LARGEST_FILE = 1 << 30  # bytes
# What is in a file may take this much memory, whatever the size of the file...
FREE_BYTES = 16 << 20
# ... and this many times its size. Probabilities hardly shrink when they are compressed.
MOST_EXPANSION = 20

Arrays = Mapping[str, np.ndarray]


def save_arrays(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write one-dimensional ``arrays`` of equal length, and JSON ``facts``, whole or not at all.

    Equal content makes equal files. Raises CarftError if the file cannot be written.
    """
    content = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), dtype=np.uint8)

    def write_archive(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, **{FACTS: content}, **arrays)

    files.save(path, write_archive)


def load_facts(path: Path) -> dict[str, Any]:
    """The facts that `save_arrays` wrote; the arrays are not read.

    Raises CarftError for a file that is missing, damaged or not one of ours.
    """
    with _opened(path) as (archive, _):
        return _read_facts(archive)


def load_arrays(
    path: Path, dtypes: Mapping[str, np.dtype[Any]], length_key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts, and one array (N,) for each name in ``dtypes``; other arrays are not read.

    ``length_key``: the key of the facts that has N. Raises CarftError for a file that is missing,
    damaged or not one of ours.
    """
    with _opened(path) as (archive, limit):
        facts = _read_facts(archive)
        length = facts[length_key]
        row_bytes = sum(dtype.itemsize for dtype in dtypes.values())
        if type(length) is not int or not 0 <= length * row_bytes <= limit:
            raise ValueError(f"it says that it has {length!r:.50} rows")

        arrays = {name: archive[name] for name in dtypes}
        for name, array in arrays.items():
            if array.dtype != dtypes[name] or array.shape != (length,):
                raise ValueError(f"{name} is not {length} values of {dtypes[name]}")
        return facts, arrays


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int]]:
    """The archive at ``path``, and the bytes that its members may take.

    Whatever a stranger's file makes zipfile and numpy raise in the block becomes a CarftError.
    """
    try:
        with files.open_regular(path, LARGEST_FILE) as file:
            limit = FREE_BYTES + MOST_EXPANSION * os.fstat(file.fileno()).st_size
            _require_small(file, limit)
            with np.load(file, allow_pickle=False) as archive:
                yield archive, limit
    except CarftError:
        raise
    except OSError as error:
        raise CarftError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise CarftError(
            f"{path} is damaged, or was not written by carft evaluate ({brief(error)}); delete it"
        ) from error


def _require_small(file: IO[bytes], limit: int) -> None:
    """Raise ValueError for an archive whose members would take more than ``limit`` bytes."""
    with zipfile.ZipFile(file) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
    file.seek(0)

    facts_size = sizes.get(EARLIER_FACTS, sizes.get(f"{FACTS}.npy", 0))
    if facts_size > MOST_FACTS or sum(sizes.values()) > limit:
        raise ValueError(f"its members take {sum(sizes.values()):,} bytes")


def _read_facts(archive: Any) -> dict[str, Any]:
    is_earlier = EARLIER_FACTS in archive.files
    content = archive[EARLIER_FACTS] if is_earlier else archive[FACTS].tobytes()
    facts = parsing.parse_json(content)
    if type(facts) is not dict:
        raise ValueError("its facts are not an object")
    return facts
