"""``carft data download``: from DomainBed's own sources to a folder that is known to be right.

Archives are fetched into a work folder beside the place of the data set, where they stay until the
data set is complete: what was fetched once, or put there by hand, is not fetched again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from domainbed_carft.data import archives, benchmarks, prepare, verify
from domainbed_carft.errors import CarftError

Fetch = Callable[[str, Path], None]


def download(
    name: str, data_dir: Path, fetch: Fetch | None = None, accept_different: bool = False
) -> verify.Report:
    """Fetch, unpack, prepare and verify the benchmark ``name``; only then is it in ``data_dir``.

    ``fetch(url, path)`` gets one file, resuming an earlier attempt. Returns the
    verification's report, whose verdict is "verified", or with ``accept_different`` "differs".
    Raises CarftError, with nothing fetched lost, for a source that fails (saying what to put where
    by hand), archives that are not what they should be, data that is not as known, a folder of the
    data set's name that is there already, and a disk that is full or cannot be written.
    """
    benchmark = benchmarks.get(name)
    if not benchmark.sources:
        raise CarftError(f"{name} is in the package; there is nothing to download")
    target = data_dir / benchmark.folder
    if target.exists():
        raise CarftError(
            f"{target} already exists; check the data with `{verify.command(name, target)}`, or "
            "move the folder away to download again"
        )
    work = data_dir / f".{benchmark.folder}.download"
    try:
        ready = _made(benchmark, work, fetch or _fetch)
        report = verify.verify(name, ready.parent)
        said = report.problems or [*report.differences, *report.notes]
        if report.problems or (report.verdict == "differs" and not accept_different):
            remedy = "" if report.problems else ". To install the data anyway: --accept_different"
            raise CarftError(
                f"{name} was downloaded but is not as expected: {'; '.join(said)}. The data is in "
                f"{ready.parent}. To download an archive again, delete the file in "
                f"{work / 'archives'} and rerun{remedy}"
            )
        ready.rename(target)
    except OSError as error:
        raise CarftError(
            f"{name} cannot be installed in {data_dir}: {error}. Downloaded files are kept: free "
            "disk space or give another --data_dir, then rerun the command"
        ) from error
    shutil.rmtree(work, ignore_errors=True)
    return dataclasses.replace(report, root=target)


def _made(benchmark: benchmarks.Benchmark, work: Path, fetch: Fetch) -> Path:
    fetched, unpacked, ready = (work / name for name in ("archives", "unpacked", "ready"))
    for folder in (unpacked, ready):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    fetched.mkdir(exist_ok=True)
    by_hand = (
        "If the link is dead or needs a browser, get the file by hand, save it as {}, "
        "and rerun the command"
    )
    try:
        for source in benchmark.sources:
            path = fetched / source.file
            try:
                if not path.is_file():
                    fetch(source.url, path)
            except Exception as error:  # a dozen kinds, from sockets to Drive's quota page
                raise CarftError(
                    f"downloading {source.url} failed ({type(error).__name__}: {error}). Rerun the "
                    f"command to resume. {by_hand.format(path)}"
                ) from error
            archives.check(path, source.is_archive)
        for source in benchmark.sources:
            if source.is_archive:
                archives.unpack(fetched / source.file, unpacked)
            else:
                shutil.copy(fetched / source.file, unpacked / source.file)
        prepare.prepare(benchmark.name, unpacked, ready / benchmark.folder)
    except archives.BadFile as bad:
        path, aside = fetched / bad.name, fetched / f"{bad.name}.damaged"
        os.replace(path, aside)
        url = next(source.url for source in benchmark.sources if source.file == bad.name)
        raise CarftError(
            f"{path}, from {url}, {bad.fault}; the file was renamed to {aside.name}. Rerun the "
            f"command to download again. {by_hand.format(path)}"
        ) from bad
    return ready / benchmark.folder


def _fetch(url: str, path: Path) -> None:
    """By gdown, which knows Google Drive's detours and resumes a partial file."""
    try:
        import gdown
        from gdown.exceptions import DownloadError  # noqa: F401  (those before 6 tell no errors)
    except ImportError as error:
        raise CarftError(
            "downloading needs gdown 6.3 or later: pip install 'domainbed-carft[data]', or "
            "download by hand"
        ) from error
    gdown.download(url, str(path), resume=True)
