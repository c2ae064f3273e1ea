"""Files of weights, of which nothing is run."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import zipfile
from pathlib import Path
from typing import IO, Any

from domainbed_carft import files
from domainbed_carft.errors import CarftError, TransientError, is_out_of_memory

CHUNK_BYTES = 1 << 20  # read at a time

_ZIP_SIGNATURE = b"PK\3\4"
# Bits of a zip member's attributes and flags.
_DOS_FOLDER = 0x10
_ENCRYPTED = 0x1


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cached_sha256(path: Path | str) -> str:
    """The SHA-256 of a file, computed once a process unless the file is another or changes."""
    status = os.stat(path)
    state = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    return _sha256_in_state(str(path), state)


@functools.lru_cache(maxsize=16)
def _sha256_in_state(path: str, state: tuple[int, ...]) -> str:
    return sha256(path)


def load_weights(path: Path | str) -> Any:
    """The content that torch.save wrote to ``path``, on the CPU; nothing in the file is run.

    Every weights file is opened here. Raises CarftError, in one line, for a file that cannot be
    read, is damaged, or holds more than plain data and tensors; TransientError if this process has
    too little memory for it.
    """
    import torch

    try:
        with files.open_regular(path) as file:
            _require_sound_archive(file, path)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except CarftError:
        raise
    except OSError as error:
        raise CarftError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch and zipfile raise a dozen types
        if is_out_of_memory(error):
            raise TransientError(
                f"{path} was not read: out of memory with a file of {os.path.getsize(path):,} "
                "bytes; end other processes, or raise this one's limit (ulimit -v)"
            ) from error
        raise _refusal(path, error) from error

    tensors = _tensors(content)
    if any(t.is_quantized or t.is_meta or t.layout is not torch.strided for t in tensors):
        raise CarftError(
            f"{path} holds quantized, sparse or empty tensors; expected dense ones of "
            "plain numbers, as the state dict of a float32 model has them"
        )
    return content


def _refusal(path: Path | str, error: Exception) -> CarftError:
    """What to raise where torch does not load a file; its own text tells to read it unsafely."""
    named = re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", str(error))
    fault = f"holds {named[1]}, which" if named else "is cut off, or holds something that"
    return CarftError(
        f"{path} {fault} may be code; nothing in the file was run. Expected only tensors and "
        "plain data, as torch.save writes them"
    )


def _require_sound_archive(file: IO[bytes], path: Path | str) -> None:
    """Refuse flipped bits, which torch does not.

    A member that is marked as a folder would be a tensor of uninitialised memory: zipfile ignores
    the mark and reads its content, torch reads nothing. Leaves ``file`` at its start.
    """
    if file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.filename.endswith("/constants.pkl") for member in members):
                raise CarftError(
                    f"{path} was not opened: the file is TorchScript, which is a program. If you "
                    "trust it, convert it to a state dict: torch.save(model.state_dict(), path)"
                )
            for member in members:
                if not _is_stored_file(member):
                    raise CarftError(
                        f"{path} is damaged: {member.filename} in it is marked as a folder, as "
                        "compressed or as encrypted, which torch.save never does; copy it anew"
                    )
            if bad := archive.testzip():
                raise CarftError(f"{path} is damaged: the checksum of {bad} is wrong; copy it anew")
    file.seek(0)


def _is_stored_file(member: zipfile.ZipInfo) -> bool:
    """Whether zipfile and torch read the same bytes of a member."""
    is_folder = member.is_dir() or member.external_attr & _DOS_FOLDER
    is_encrypted = member.flag_bits & _ENCRYPTED
    is_stored = member.compress_type == zipfile.ZIP_STORED
    has_one_size = member.file_size == member.compress_size
    return is_stored and has_one_size and not is_folder and not is_encrypted


def _tensors(content: Any) -> list[Any]:
    """All tensors in it, views and repeated ones as often as they are there."""
    import torch

    tensors = []
    visited_ids = set()
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            tensors.append(item)
        elif isinstance(item, (dict, list, tuple)) and id(item) not in visited_ids:
            visited_ids.add(id(item))
            pending += item.values() if isinstance(item, dict) else item
    return tensors
