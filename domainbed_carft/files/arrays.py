"""Arrays of equal length and facts about them, in one compressed .npz file without pickle.

`numpy.load` opens such a file, too. It may be a stranger's: `load_arrays` believes no size in it.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from domainbed_carft import files
from domainbed_carft.errors import CarftError, brief
from domainbed_carft.files import parsing

FACTS = "facts.json"

MOST_FACTS = 1 << 20  # bytes of the facts
LARGEST_FILE = 1 << 30  # bytes
# The arrays may take this much memory, whatever the size of their file...
FREE_BYTES = 16 << 20
# ... and this many times its size. Probabilities hardly shrink when they are compressed.
MOST_EXPANSION = 20

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_ALIGNMENT = 64  # bytes, of the header
_ENCRYPTED = 0x1  # a flag of a member in an archive

Arrays = Mapping[str, np.ndarray]


def save_arrays(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write one-dimensional ``arrays`` of equal length, and JSON ``facts``, whole or not at all.

    Raises CarftError if the file cannot be written.
    """

    def write_archive(part: Path) -> None:
        with zipfile.ZipFile(part, "w") as archive:
            _write_member(archive, FACTS, json.dumps(facts, sort_keys=True).encode())
            for name, array in arrays.items():
                content = _npy_header(array.dtype, len(array)) + array.tobytes()
                _write_member(archive, f"{name}.npy", content)

    files.save(path, write_archive)


def load_facts(path: Path) -> dict[str, Any]:
    """The facts that `save_arrays` wrote; the arrays are not read.

    Raises CarftError for a file that is missing, damaged or not one of ours.
    """
    facts, _ = _load(path, {}, "")
    return facts


def load_arrays(
    path: Path, dtypes: Mapping[str, np.dtype[Any]], length_key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts, and one array (N,) for each name in ``dtypes``; other arrays are not read.

    ``length_key``: the key of the facts that has N. Nothing is allocated before all sizes agree:
    those of the facts, of the archive's directory and of the file.

    Raises CarftError for a file that is missing, damaged or not one of ours.
    """
    return _load(path, dtypes, length_key)


def _load(
    path: Path, dtypes: Mapping[str, np.dtype[Any]], length_key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with files.open_regular(path, LARGEST_FILE) as file, zipfile.ZipFile(file) as archive:
            facts = _read_facts(archive)
            if not dtypes:
                return facts, {}

            length = facts[length_key]
            _require_length(length, dtypes, os.fstat(file.fileno()).st_size)
            arrays = {
                name: _read_array(archive, f"{name}.npy", dtype, length)
                for name, dtype in dtypes.items()
            }
            return facts, arrays
    except CarftError:
        raise
    except OSError as error:
        raise CarftError(f"{path} cannot be read: {error.strerror or error}") from error
    # What zipfile and zlib raise for an archive that is cut off, altered or encrypted.
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise CarftError(
            f"{path} is damaged, or was not written by carft evaluate ({brief(error)}); delete it"
        ) from error


def _write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name)  # without today's date: equal content makes equal files
    archive.writestr(member, content, zipfile.ZIP_DEFLATED)


def _npy_header(dtype: np.dtype[Any], length: int) -> bytes:
    """The header of a .npy file, version 1.0, of an array (length,); always the same bytes."""
    description = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({length},), }}"
    used = len(_NPY_MAGIC) + 2 + len(description) + 1
    padding = " " * (-used % _NPY_ALIGNMENT)

    text = f"{description}{padding}\n".encode()
    return _NPY_MAGIC + len(text).to_bytes(2, "little") + text


def _read_facts(archive: zipfile.ZipFile) -> dict[str, Any]:
    info = archive.getinfo(FACTS)
    if info.file_size > MOST_FACTS:
        raise ValueError(f"{FACTS} has {info.file_size} bytes")
    with _open_member(archive, info) as member:
        facts = parsing.parse_json(member.read(MOST_FACTS + 1))
    if type(facts) is not dict:
        raise ValueError(f"{FACTS} is not an object")
    return facts


def _require_length(length: Any, dtypes: Mapping[str, np.dtype[Any]], file_size: int) -> None:
    """Raise ValueError for a number of rows that a file of this size cannot have."""
    row_bytes = sum(dtype.itemsize for dtype in dtypes.values())
    limit = FREE_BYTES + MOST_EXPANSION * file_size
    if type(length) is not int or not 0 <= length * row_bytes <= limit:
        raise ValueError(f"a file of {file_size} bytes says that it has {length!r:.50} rows")


def _read_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], length: int
) -> np.ndarray:
    info = archive.getinfo(name)
    header = _npy_header(dtype, length)
    n_bytes = length * dtype.itemsize
    if info.file_size != len(header) + n_bytes:
        raise ValueError(f"{name} has {info.file_size} bytes, not {len(header) + n_bytes}")

    with _open_member(archive, info) as member:
        if member.read(len(header)) != header:
            raise ValueError(f"{name} has another header than {length} values of {dtype}")
        content = member.read(n_bytes)
        if member.read(1) or len(content) != n_bytes:  # to the end: there zipfile checks the CRC
            raise ValueError(f"{name} has not {n_bytes} bytes")
    return np.frombuffer(content, dtype=dtype)


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    is_known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if not is_known or info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{info.filename} is encrypted, or compressed in another way")
    return archive.open(info)
