"""Pictures, and archives of them, as they are downloaded."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from data_trees import jpeg

PICTURE = jpeg(size=(2, 2))


def write(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    return folder


def zipped(path: Path, names: list[str], padding: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, PICTURE)
        if padding:
            archive.writestr(names[0] + ".txt", bytes(padding))
    return path


def tarred(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """Members are (name, content), the content of a symbolic link its target as a str."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def packed(path: Path, names: list[str]) -> Path:
    """Pictures in an archive of the kind that the name says."""
    if path.suffix == ".zip":
        return zipped(path, names)
    return tarred(path, *((name, PICTURE) for name in names))


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
