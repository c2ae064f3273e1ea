"""Folders and archives of images with the layouts of the benchmarks, and `carft data`."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from domainbed_carft import cli
from domainbed_carft.data import comparison, verification

# Environment -> class -> number of images.
Counts = Mapping[str, Mapping[str, int]]


def grow(root: Path, counts: Counts, content: bytes = b"x") -> Path:
    """Create environment/class/0.jpg, ... below ``root``, and return it."""
    for environment, classes in counts.items():
        for name, images in classes.items():
            folder = root / environment / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(images):
                (folder / f"{index}.jpg").write_bytes(content)
    return root


def make_report(name: str, counts: Counts) -> verification.DataReport:
    """Report on a dataset with these counts, without a folder."""
    findings = comparison.compare(name, counts)
    return verification.DataReport(
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
    """Run ``carft data`` and return its status and output."""
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


def tarred(path: Path, names: list[str], content: bytes = IMAGE) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def packed(path: Path, names: list[str]) -> Path:
    """Create an archive of images, of the type that the path's suffix names."""
    return zipped(path, names) if path.suffix == ".zip" else tarred(path, names)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
