"""``carft data download``: from DomainBed's own sources to a folder that is known to be right.

Archives are fetched into a work folder beside the place of the data set, where they stay until the
data set is complete: what was fetched once, or put there by hand, is not fetched again.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from domainbed_carft.data import archives as unpack
from domainbed_carft.data import benchmarks, prepare, verify
from domainbed_carft.errors import CarftError

Fetch = Callable[[str, Path], None]


def download(
    name: str, data_dir: Path, fetch: Fetch | None = None, accept_different: bool = False
) -> verify.Report:
    """Fetch, unpack, prepare and verify the benchmark ``name``; only then is it in ``data_dir``.

    ``fetch(url, path)`` gets one file, going on where an earlier try stopped. Returns the
    verification's report, whose verdict is "verified", or with ``accept_different`` "differs".
    Raises CarftError, with nothing fetched lost, for a source that fails (saying what to put where
    by hand), archives that are not what they should be, data that is not as known, a folder of the
    data set's name that is there already, and a disk that is full or cannot be written.
    """
    try:
        return _download(name, data_dir, fetch or _fetch, accept_different)
    except OSError as error:
        raise CarftError(
            f"{name} cannot be made in {data_dir}: {error}. Make room there, or give another "
            "--data_dir, and run the command again; what was fetched is kept"
        ) from error


def _download(name: str, data_dir: Path, fetch: Fetch, accept_different: bool) -> verify.Report:
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
    archives = {source.file: source for source in benchmark.sources}
    try:
        for source in benchmark.sources:
            _get(source, work / "archives", fetch)
        _make(benchmark, work)
    except unpack.BadFile as bad:
        raise _set_aside(archives[bad.name], work / "archives", bad.fault) from bad
    report = verify.verify(name, work / "ready")
    _require_as_known(report, work, data_dir, accept_different)
    (work / "ready" / benchmark.folder).rename(target)
    shutil.rmtree(work, ignore_errors=True)
    left = (f"{work} is not needed any more, but could not be deleted",) if work.exists() else ()
    return dataclasses.replace(report, root=target, notes=(*report.notes, *left))


def _make(benchmark: benchmarks.Benchmark, work: Path) -> None:
    """From all that is in ``archives`` the folder of the data set in ``ready``."""
    unpacked = _cleared(work / "unpacked")
    for source in benchmark.sources:
        archive = work / "archives" / source.file
        if source.is_archive:
            unpack.unpack(archive, unpacked)
        else:
            shutil.copy(archive, unpacked / source.file)
    try:
        prepare.prepare(benchmark.name, unpacked, _cleared(work / "ready" / benchmark.folder))
    except unpack.BadFile:
        raise
    except CarftError as error:
        raise CarftError(
            f"{error}. What was fetched is in {work / 'archives'}: put others there, or delete "
            "what is to be fetched again, and run the command again"
        ) from error


def _require_as_known(
    report: verify.Report, work: Path, data_dir: Path, accept_different: bool
) -> None:
    """Nobody shall take the half of a data set for the whole."""
    left = f"It was left in {work / 'ready'}, its archives in {work / 'archives'}"
    if report.verdict == "broken":
        raise CarftError(
            f"{report.name} was downloaded but is not right: {'; '.join(report.problems)}. {left}; "
            f"delete {work} to start anew"
        )
    if report.verdict != "verified" and not accept_different:
        said = "; ".join((*report.differences, *report.notes))
        command = f"carft data download {report.name} --data_dir {shlex.quote(str(data_dir))}"
        raise CarftError(
            f"{report.name} was downloaded but differs from what is known of it: {said}. {left}. "
            f"To take it as it is, without fetching anything again: {command} --accept_different. "
            "To fetch an archive again, delete it there and run the command without that option"
        )


def _get(source: benchmarks.Source, folder: Path, fetch: Fetch) -> None:
    """Fetch a file, unless it is there; BadFile for what is not such a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / source.file
    if not path.is_file():
        try:
            fetch(source.url, path)
        except Exception as error:  # a dozen kinds, from sockets to Drive's quota page
            raise CarftError(
                f"{source.url} could not be fetched ({type(error).__name__}: {error}). Run the "
                f"command again to go on where it stopped. {_by_hand(path)}"
            ) from error
    unpack.check(path, source.is_archive)


def _set_aside(source: benchmarks.Source, folder: Path, fault: str) -> CarftError:
    """What to say of a file that is no use, which is no longer in the way of another one."""
    path = folder / source.file
    aside = folder / f"{source.file}.damaged"
    os.replace(path, aside)
    return CarftError(
        f"{path}, from {source.url}, {fault}. It is {aside.name} in that folder now. Run the "
        f"command again to fetch it anew. {_by_hand(path)}"
    )


def _by_hand(path: Path) -> str:
    return (
        "If the link is dead, or wants a browser, get the file in any other way, save it as "
        f"{path}, and run the command again"
    )


def _fetch(url: str, path: Path) -> None:
    """By gdown, which knows Google Drive's detours and goes on with a partial file."""
    try:
        import gdown
        from gdown.exceptions import DownloadError
    except ImportError as error:
        raise CarftError(
            "downloading needs gdown 6.3 or later: pip install 'domainbed-carft[data]', or fetch "
            "by hand"
        ) from error
    try:
        gdown.download(url, str(path), resume=True)
    except DownloadError as error:
        if "byte range" not in str(error):
            raise
        # Else every further run would ask for the rest, and never get it.
        print(f"{url} is fetched from its beginning: {error}", file=sys.stderr)
        for part in path.parent.glob(f"{path.name}*.part"):
            part.unlink()
        gdown.download(url, str(path), resume=True)


def _cleared(folder: Path) -> Path:
    """No such folder, but the one it lies in."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
