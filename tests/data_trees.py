"""Trees with the shapes of the benchmarks, the command that judges them, archives of images."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from domainbed_carft import cli
from domainbed_carft.data import comparison, verify

# Environment -> class -> how many images.
Counts = Mapping[str, Mapping[str, int]]


def grow(root: Path, counts: Counts, content: bytes = b"x") -> Path:
    """environment/class/0.jpg, ... below ``root``; returns it."""
    for environment, classes in counts.items():
        for name, images in classes.items():
            folder = root / environment / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(images):
                (folder / f"{index}.jpg").write_bytes(content)
    return root


def make_report(name: str, counts: Counts) -> verify.DataReport:
    """The report on a dataset with these counts, without a folder."""
    findings = comparison.compare(name, counts)
    return verify.DataReport(
        name=name,
        root=Path(name),
        counts=counts,
        problems=findings.problems,
        differences=findings.differences,
        notes=findings.notes,
        edition=findings.edition,
    )


def even(
    names: Sequence[str], environments: Iterable[str] = ("art", "photo"), images: int = 1
) -> dict[str, dict[str, int]]:
    return {environment: dict.fromkeys(names, images) for environment in environments}


def jpeg(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def carft(*arguments: object) -> SimpleNamespace:
    """What ``carft data`` ends with and prints."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = cli.main(["data", *map(str, arguments)])
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


IMAGE = jpeg(size=(2, 2))


def write(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE)
    return folder


def zipped(path: Path, names: list[str], padding: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, IMAGE)
        if padding:
            archive.writestr(names[0] + ".txt", bytes(padding))
    return path


def tarred(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """Members are (name, content), the content of a symbolic link its target as a str."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type = tarfile.SYMTYPE
                info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    return path


def packed(path: Path, names: list[str]) -> Path:
    """Images in an archive of the kind that the name says."""
    if path.suffix == ".zip":
        return zipped(path, names)
    return tarred(path, *((name, IMAGE) for name in names))


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@contextmanager
def without_privileges() -> Iterator[None]:
    """Inside the block this process is not root, whom no permission concerns."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)
