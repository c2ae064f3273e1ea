"""Files: written whole or not at all, never over an input; JSON and YAML read without surprises."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from domainbed_carft.errors import CarftError

YamlPath = tuple["str | int", ...]  # keys and list indices from the top of the file

# How many times the size of its file the tensors in it may have: modules share some.
SHARED = 10

# What a process that was killed while it wrote leaves beside the file.
HALF_WRITTEN = ".carft-*.part"

_YAML_NODES, _YAML_DEPTH = 20_000, 40
_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "timestamp": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0 if text[:2] in ("0x", "0o") else 10),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


def write(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let ``write_to`` fill a file beside ``path``, then give it that name; folders are made.

    A reader sees what was there before or the whole file, and of two writers at once the last one
    wins. A link stays one. Permissions are those of the file before, else as the umask has them.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that nobody can have put a link at. With an ending: torch takes none for a name.
    descriptor, name = tempfile.mkstemp(prefix=".carft-", suffix=".part", dir=target.parent)
    os.close(descriptor)
    beside = Path(name)
    try:
        write_to(beside)
        os.chmod(beside, stat.S_IMODE(target.stat().st_mode) if target.exists() else _umasked())
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_weights(path: Path | str) -> Any:
    """What torch.save wrote to ``path``, with tensors on the CPU; nothing in the file is run.

    Every file of weights is opened here. Raises CarftError, in one line, for one that cannot be
    read, is damaged, holds more than plain data and tensors, or would take far more memory.
    """
    import torch

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise CarftError(f"{path} is not a file")
        with open(path, "rb") as file:
            _require_sound(file, path)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (CarftError, MemoryError):
        raise
    except OSError as error:
        raise CarftError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch and zipfile raise a dozen types
        # torch's own text tells the user to read the file unsafely.
        named = re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", str(error))
        fault = f"holds {named[1]}, which" if named else "is cut off or holds something that"
        raise CarftError(
            f"{path} {fault} might be a program; nothing in it was run. Expected tensors and "
            "plain data, as torch.save writes them"
        ) from error
    if _nbytes(content) > SHARED * os.path.getsize(path):
        raise CarftError(f"{path} holds tensors that are far larger than the file; not used")
    return content


def _require_sound(file: IO[bytes], path: Path | str) -> None:
    """Check what torch does not, and leave ``file`` at its start."""
    # TorchScript, which torch before 2.6 runs even with weights_only. Searched as bytes, because
    # zipfile and torch may see other members in a file that was made to deceive.
    before = b""
    while piece := file.read(1 << 20):
        if b"constants.pkl" in before + piece:
            raise CarftError(
                f"{path} is TorchScript, which is a program; it was not opened. Where you "
                "trust it, make a state dict of it: torch.save(clip_model.state_dict(), path)"
            )
        before = piece[-12:]
    size = file.tell()
    file.seek(0)
    if file.read(4) == b"PK\3\4":
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type for part in parts) or size < sum(p.file_size for p in parts):
                raise CarftError(f"{path} is compressed, which torch.save never does")
            if damaged := archive.testzip():
                raise CarftError(
                    f"{path} is damaged: the checksum of {damaged} is wrong; get it again"
                )
    file.seek(0)


def _nbytes(content: Any) -> int:
    """Of all tensors in it, views and repeated ones in full."""
    import torch

    total, seen, waiting = 0, set(), [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor):
            total += one.numel() * one.element_size() if one.layout == torch.strided else 0
        elif isinstance(one, (Mapping, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, Mapping) else one
    return total


def save(path: Path, write_to: Callable[[Path], object]) -> None:
    """As ``write``; raises CarftError where that fails, and what was there before is untouched."""
    try:
        write(path, write_to)
    except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
        raise _not_written(path, error) from error


def save_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, as ``save`` has it; pipes and devices are written to directly."""
    content = text.encode("utf-8", "backslashreplace")
    if _is_replaceable(path):
        save(path, lambda beside: beside.write_bytes(content))
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _not_written(path, error) from error


@contextlib.contextmanager
def stream(path: Path | None) -> Iterator[TextIO]:
    """A text file to write line after line, standard output without a path.

    Until the block is done the file has ``.part`` behind its name, unless it is a pipe or a device.
    Raises CarftError where it cannot be written.
    """
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    replaced = _is_replaceable(path)
    part = Path(f"{os.path.realpath(path)}.part") if replaced else path
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        if replaced:
            os.replace(part, os.path.realpath(path))
    except OSError as error:
        raise _not_written(path, error) from error


def require_output(path: Path | None, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raise CarftError, before anything takes time, unless ``-o path`` can be written.

    It may be none of the ``inputs``, and no file in the folder of a job or a sweep: whatever lies
    beside records, a manifest or a lock is theirs.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise CarftError(f"-o {path}: expected the name of a file in a folder that exists")
    there = [other for other in inputs if other and os.path.exists(other)]
    if path.exists() and any(path.samefile(other) for other in there):
        raise CarftError(f"-o {path} would overwrite an input; choose another name")
    real = Path(os.path.realpath(path))
    kept = ("results.jsonl", "sweep.json", "lock", "done")
    if real.exists() and any((real.parent / name).exists() for name in kept):
        raise CarftError(f"-o {path} would overwrite a file of a job or sweep; choose another name")


def cache_folder() -> Path:
    """``$DOMAINBED_CARFT_CACHE``, else ``domainbed_carft`` in the user's cache folder."""
    explicit = os.environ.get("DOMAINBED_CARFT_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "domainbed_carft"


def parse_json(text: str | bytes, unique_keys: bool = False) -> Any:
    """The value that JSON stands for, NaN and Infinity included, which Python writes.

    Raises ValueError for whatever is wrong: syntax, nesting, a number that is too long, and a key
    that is there twice if they are to be unique.
    """
    import orjson

    if not unique_keys:
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    try:
        return json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none, it cannot be read or is no JSON."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def parse_yaml(text: str) -> tuple[Any, dict[YamlPath, int]]:
    """Plain data of YAML 1.2, and the line of each path in it: ``("hparams", "lr")``, say.

    ``off`` is a word and ``1e-5`` a number. Raises ValueError, with ``LINE: `` in front, for what
    is no YAML, keys that are there twice, aliases to collections, tags, and more values or levels
    than a person writes: a few lines may stand for all the memory that there is.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = YAML(typ="safe", pure=True)
    try:
        _require_small(reader.parse(text))
        node = reader.compose(text)
        lines: dict[YamlPath, int] = {(): 1}
        return None if node is None else _plain(node, (), lines), lines
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{mark.line + 1 if mark else 1}: this is not YAML: {why}") from error
    except YAMLError as error:  # a character that YAML has no place for
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ValueError(f"{line}: this is not YAML: {' '.join(str(error).split())}") from error


def _require_small(events: Iterable[Any]) -> None:
    depth, collections = 0, set()
    for count, event in enumerate(events):
        kind = type(event).__name__
        line = event.start_mark.line + 1
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if depth > _YAML_DEPTH or count > _YAML_NODES:
            most = f"{_YAML_NODES:,} values and {_YAML_DEPTH} levels"
            raise ValueError(f"{line}: the file is too large; expected at most {most}")
        if kind in ("MappingStartEvent", "SequenceStartEvent") and event.anchor:
            collections.add(event.anchor)
        if kind == "AliasEvent" and event.anchor in collections:
            raise ValueError(f"{line}: *{event.anchor} stands for a collection; write it out")


def _plain(node: Any, path: YamlPath, lines: dict[YamlPath, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    kind = str(node.tag).rpartition(":")[2]
    if kind == "seq":
        return [_plain(value, (*path, index), lines) for index, value in enumerate(node.value)]
    if kind == "map":
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            inner = (*path, key.value)
            if not isinstance(key.value, str):
                raise ValueError(f"{line}: a key is a list or a mapping; expected a word")
            if key.value in found:
                twice = f"the key {key.value!r} is there twice, first in line {lines[inner]}"
                raise ValueError(f"{line}: {twice}; keep one")
            lines[inner] = line
            found[key.value] = _plain(value, inner, lines)
        return found
    if kind not in _SCALARS:
        raise ValueError(f"{line}: the tag {node.tag} means nothing here; remove it")
    try:
        return _SCALARS[kind](node.value)
    except ValueError:
        raise ValueError(f"{line}: {node.value[:20]!r} is not a number that can be read") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice; keep one")
    return found


def _is_replaceable(path: Path) -> bool:
    """Not so a device or a pipe, and what is open by a name in /dev."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return False
    return path.is_file() or not path.exists()


def _umasked() -> int:
    """The permissions that open() would give a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _not_written(path: Path, error: Exception) -> CarftError:
    reason = getattr(error, "strerror", None) or error
    return CarftError(
        f"{path} could not be written: {reason}; choose a folder that can be written, on a disk "
        "with room"
    )
