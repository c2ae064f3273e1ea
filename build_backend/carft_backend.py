"""setuptools as PEP 517 backend, plus the files that setuptools has no way to put into a wheel.

- `domainbed_carft.pth` and `domainbed_carft.start` in the root of site-packages: they hook the
  imports of `domainbed` in every interpreter of the environment. A `.pth` line does so up to
  Python 3.17, the `.start` file (PEP 829) from 3.15 on. The names sort after
  `__editable__.*.pth`, which makes the package importable in the first place.
- `domainbed_carft/harness/domainbed`: the harness, which the source tree keeps as
  `third_party/domainbed`, and `domainbed_carft/sweeps`, the declared sweeps, there `sweeps`. An
  editable install uses both from there.

All of them stand in the wheel's RECORD, so that uninstalling removes them.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# Where the source tree keeps what the wheel has inside the package.
MOVED = {
    Path("third_party/domainbed"): "domainbed_carft/harness/domainbed",
    Path("sweeps"): "domainbed_carft/sweeps",
}

# A package that is gone, a source tree moved away say, must not print a traceback at every start,
# and one that is half there says so in one line.
PTH = (
    'import sys; exec("try:\\n import domainbed_carft.plugin as p; p.install()\\n'
    "except ModuleNotFoundError: 0\\nexcept Exception as e: print('domainbed-carft is damaged "
    "(%r); install it again' % e, file=sys.stderr)\")\n"
)
START_FILES = {
    "domainbed_carft.pth": PTH.encode(),
    "domainbed_carft.start": b"domainbed_carft.plugin:install\n",
}


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel with setuptools, then add the start files, harness and sweeps."""
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _add_files(Path(wheel_directory, name), {**START_FILES, **_moved_files()})
    return name


def build_editable(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the editable wheel with setuptools, then add the start files."""
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    _add_files(Path(wheel_directory, name), START_FILES)
    return name


def _moved_files() -> dict[str, bytes]:
    """Return the files of MOVED by their names in the wheel."""
    for folder in MOVED:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing, so the wheel would lack it")
    return {
        f"{inside}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for folder, inside in MOVED.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _add_files(wheel: Path, files: Mapping[str, bytes]) -> None:
    """Add `files` and their RECORD lines to the wheel, which is replaced when complete."""
    unfinished = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(unfinished, "w") as new:
        (record,) = (info for info in old.infolist() if info.filename.endswith("dist-info/RECORD"))
        for info in old.infolist():
            if info is not record:
                new.writestr(info, old.read(info))
        lines = old.read(record).decode()
        for name, data in files.items():
            new.writestr(_like(record, name), data)
            lines += f"{name},sha256={_digest(data)},{len(data)}\n"
        new.writestr(record, lines)
    unfinished.replace(wheel)


def _like(record: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    """Return an entry `name` with the time and the mode that setuptools gave to RECORD."""
    info = zipfile.ZipInfo(name, record.date_time)
    info.compress_type = record.compress_type
    info.external_attr = record.external_attr
    return info


def _digest(data: bytes) -> str:
    """Return the SHA-256 of `data` as RECORD wants it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
