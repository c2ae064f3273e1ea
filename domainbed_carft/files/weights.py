"""Weights files, opened without running any code that they contain."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from domainbed_carft import files
from domainbed_carft.errors import CarftError, TransientError, get_module, is_out_of_memory

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 1 << 20

_ZIP_SIGNATURE = b"PK\3\4"
# Bits of a zip member's attributes and flags.
_DOS_FOLDER = 0x10
_ENCRYPTED = 0x1


def sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cached_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file, computed once per process unless the file changes."""
    status = os.stat(path)
    state = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    return _sha256_in_state(str(path), state)


@functools.lru_cache(maxsize=16)
def _sha256_in_state(path: str, state: tuple[int, ...]) -> str:
    return sha256(path)


def load_weights(path: Path | str) -> Any:
    """Load a file that torch.save wrote, to the CPU, without running code in it.

    All weights files are opened by this function, because they can be untrusted.

    Returns:
        Tensors and plain data.

    Raises:
        CarftError: if the file cannot be read, is damaged, or contains anything else.
        TransientError: if memory runs out.
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
        raise _unsafe_content(path, error) from error

    tensors = _find_tensors(content)
    if any(t.is_quantized or t.is_meta or t.layout is not torch.strided for t in tensors):
        raise CarftError(
            f"{path} holds quantized, sparse or empty tensors; expected dense ones of "
            "plain numbers, like the state dict of a float32 model"
        )
    return content


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file; OSError if that fails, CarftError without the library."""
    save_file = get_module("safetensors.torch", "safetensors").save_file
    from safetensors import SafetensorError

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, {"format": "pt"})  # required by transformers 4
    except SafetensorError as error:  # contains the operating system's message
        raise OSError(str(error)) from error


def _unsafe_content(path: Path | str, error: Exception) -> CarftError:
    """Return an error in place of torch's, which advises users to load the file unsafely."""
    match = re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", str(error))
    fault = f"contains {match[1]}, which" if match else "is cut off, or contains something that"
    return CarftError(
        f"{path} {fault} can be code; nothing in the file was run. Expected only tensors and "
        "plain data, written by torch.save"
    )


def _require_sound_archive(file: IO[bytes], path: Path | str) -> None:
    """Raise CarftError for flipped bits, which torch does not detect; rewind ``file``."""
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
                        f"{path} is damaged: {member.filename} in it is marked as a folder, "
                        "as compressed or as encrypted, which torch.save never does; copy the "
                        "file again"
                    )
            if bad := archive.testzip():
                raise CarftError(
                    f"{path} is damaged: the checksum of {bad} is wrong; copy the file again"
                )
    file.seek(0)


def _is_stored_file(member: zipfile.ZipInfo) -> bool:
    """Return True if zipfile and torch read the same bytes of a member."""
    # torch skips a member that is marked as a folder, and its tensor is uninitialised memory.
    is_folder = member.is_dir() or member.external_attr & _DOS_FOLDER
    return (
        member.compress_type == zipfile.ZIP_STORED
        and member.file_size == member.compress_size
        and not is_folder
        and not member.flag_bits & _ENCRYPTED
    )


def _find_tensors(content: Any) -> list[Any]:
    """Return all tensors in nested containers, repeated ones repeatedly."""
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
