"""``carft data download``: from DomainBed's own sources to a folder that is known to be right.

Archives are fetched into a work folder beside the place of the data set, where they stay until the
data set is complete: what was fetched once, or put there by hand, is not fetched again.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from domainbed_carft import benchmarks
from domainbed_carft.data import prepare, unpack, verify
from domainbed_carft.errors import CarftError

Fetch = Callable[[str, Path], None]


def download(name: str, data_dir: Path, fetch: Fetch | None = None) -> verify.Report:
    """Fetch, unpack, prepare and verify the benchmark ``name``; only then is it in ``data_dir``.

    ``fetch(url, path)`` gets one file, going on where an earlier try stopped. Returns the
    verification's report. Raises CarftError, with nothing fetched lost, for a source that fails
    (saying what to put where by hand), archives that are not what they should be, a folder of the
    data set's name that is there already, and a disk that is full or cannot be written.
    """
    try:
        return _download(name, data_dir, fetch or _fetch)
    except OSError as error:
        raise CarftError(
            f"{name} cannot be made in {data_dir}: {error}. Make room there, or give another "
            "--data_dir, and run the command again; what was fetched is kept"
        ) from error


def _download(name: str, data_dir: Path, fetch: Fetch) -> verify.Report:
    benchmark = benchmarks.get(name)
    if not benchmark.sources:
        raise CarftError(f"{name} is in the package; there is nothing to download")
    target = data_dir / benchmark.folder
    if target.exists():
        raise CarftError(
            f"{target} is there already; `carft data verify {name} --data_dir {data_dir}` says "
            "whether it is complete. Move it away to download anew"
        )
    work = data_dir / f".{benchmark.folder}.download"
    archives = [_fetched(source, work / "archives", fetch) for source in benchmark.sources]
    _cleared(work / "unpacked")
    for archive, source in zip(archives, benchmark.sources):
        if source.is_archive:
            unpack.unpack(archive, work / "unpacked")
        else:
            shutil.copy(archive, work / "unpacked" / source.file)
    prepare.prepare(name, work / "unpacked", _cleared(work / "ready" / benchmark.folder))
    report = verify.verify(name, work / "ready")
    if report.verdict == "broken":
        raise CarftError(
            f"{name} was downloaded but is not right: {'; '.join(report.problems)}. It was left in "
            f"{work / 'ready'}, its archives in {work / 'archives'}; delete {work} to start anew"
        )
    (work / "ready" / benchmark.folder).rename(target)
    shutil.rmtree(work)
    return dataclasses.replace(report, root=target)


def _fetched(source: benchmarks.Source, folder: Path, fetch: Fetch) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / source.file
    if not path.is_file():
        try:
            fetch(source.url, path)
        except Exception as error:  # a dozen kinds, from sockets to Drive's quota page
            raise CarftError(
                f"{source.url} could not be fetched ({type(error).__name__}: {error}). Run the "
                "command again to go on where it stopped. If the link is dead, or wants a browser, "
                f"get the file in any other way, save it as {path}, and run the command again"
            ) from error
    return path


def _fetch(url: str, path: Path) -> None:
    """By gdown, which knows Google Drive's detours and goes on with a partial file."""
    try:
        import gdown
    except ImportError as error:
        raise CarftError(
            "downloading needs gdown: pip install 'domainbed-carft[data]', or fetch by hand"
        ) from error
    gdown.download(url, str(path), resume=True)


def _cleared(folder: Path) -> Path:
    """No such folder, but the one it lies in."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
