"""``carft data download``: from DomainBed's own sources to a folder that is known to be right.

Archives stay in a work folder beside the dataset until it is complete: an archive that is there,
fetched or put there by hand, is not fetched again. After upstream's file
domainbed/scripts/download.py at b93c22a.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.data import archives, benchmarks, preparation, verify
from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import CarftError

Fetch = Callable[[str, Path], None]
Prepare = Callable[[Path, Path], None]
Judge = Callable[[str, Path], verify.DataReport]

# A download ends if the process moves fewer bytes than this between memory and files in that time.
PATIENCE_SECONDS = 60.0
_MIN_PROGRESS = 1 << 18


def download(
    name: str, data_dir: Path, fetch: Fetch | None = None, accept_different: bool = False
) -> verify.DataReport:
    """Fetch, unpack, prepare and verify the benchmark ``name``; only then is it in ``data_dir``.

    ``fetch(url, path)`` gets one file, resuming an earlier attempt. Returns the
    verification's report, whose verdict is "verified", or with ``accept_different`` "differs".
    Raises CarftError, with nothing fetched lost, for a source that fails (saying what to put where
    by hand), wrong archives, data that is not as known, a place that is taken, and a full disk.
    """
    benchmark = benchmarks.get(name)
    if not benchmark.sources:
        raise CarftError(f"{name} is in the package; there is nothing to download")
    return install(
        name,
        target=data_dir / benchmark.folder,
        sources=benchmark.sources,
        prepare=functools.partial(preparation.prepare, name),
        judge=verify.verify,
        fetch=fetch,
        accept_different=accept_different,
    )


def install(
    name: str,
    target: Path,
    sources: Sequence[benchmarks.Source],
    prepare: Prepare,
    judge: Judge,
    fetch: Fetch | None = None,
    accept_different: bool = False,
) -> verify.DataReport:
    """Fetch and unpack ``sources``, prepare and verify the data, and then move it to ``target``.

    ``prepare(unpacked, ready)`` makes the folder ``ready`` of what the archives held,
    ``judge(name, data_dir)`` verifies it, ``fetch(url, path)`` gets one file. Returns the
    verification's report. Raises CarftError as `download`.
    """
    data_dir = target.parent
    if target.exists():
        raise CarftError(
            f"{target} already exists; check the data with `carft data verify {name} --data_dir "
            f"{shlex.quote(str(data_dir))}`, or move the folder away to download again"
        )

    work = _WorkFolder(data_dir / f".{target.name}.download", target.name)
    try:
        with remove_empty_folders_on_error(
            work.unpacked, work.ready.parent, work.archives, work.root
        ):
            work.clear()
            _fetch_all(sources, work, fetch or _fetch)
            _prepare(sources, work, prepare)
            report = judge(name, work.ready.parent)
            _require_expected(report, work, accept_different)
            work.ready.rename(target)
    except OSError as error:
        raise CarftError(
            f"{name} cannot be installed in {data_dir}: {error}. Downloaded files are kept: free "
            "disk space or give another --data_dir, then rerun the command"
        ) from error

    shutil.rmtree(work.root, ignore_errors=True)
    return dataclasses.replace(report, root=target)


@dataclasses.dataclass(frozen=True)
class _WorkFolder:
    """The folder beside a dataset in which it is made."""

    root: Path
    dataset: str  # the name of the dataset's own folder

    @property
    def archives(self) -> Path:
        """What was fetched, or put there by hand."""
        return self.root / "archives"

    @property
    def unpacked(self) -> Path:
        """What the archives held."""
        return self.root / "unpacked"

    @property
    def ready(self) -> Path:
        """The dataset, before it is moved to its place."""
        return self.root / "ready" / self.dataset

    def clear(self) -> None:
        """Make the folders, and delete what an earlier attempt has left, except archives."""
        for folder in (self.unpacked, self.ready.parent):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.archives.mkdir(exist_ok=True)


def _require_expected(report: verify.DataReport, work: _WorkFolder, accept_different: bool) -> None:
    """Raise CarftError for data that is broken, or differs and is not accepted."""
    if not report.problems and (report.status != "differs" or accept_different):
        return

    sentences = report.problems or [*report.differences, *report.notes]
    remedy = "" if report.problems else ". To install the data anyway: --accept_different"
    raise CarftError(
        f"{report.name} was downloaded but is not as expected: {'; '.join(sentences)}. The data is "
        f"in {work.ready.parent}. To download an archive again, delete the file in {work.archives} "
        f"and rerun{remedy}"
    )


@contextlib.contextmanager
def remove_empty_folders_on_error(*folders: Path) -> Iterator[None]:
    """Remove those of the ``folders`` that are empty if the block raises.

    Also remove the data folder, which is the parent of all, unless it existed before.
    """
    data_dir = Path(os.path.commonpath(folders)).parent
    removable = list(folders)
    if not data_dir.exists():
        removable.append(data_dir)
    try:
        yield
    except BaseException:
        for folder in removable:
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()
        raise


def _fetch_all(sources: Sequence[benchmarks.Source], work: _WorkFolder, fetch: Fetch) -> None:
    """Fetch the archives that are missing. Raises CarftError for one that fails or is damaged."""
    for source in sources:
        path = work.archives / source.file
        try:
            if not path.is_file():
                print(f"{path.name}: fetching {source.url}", file=sys.stderr)
                with_time_limit(functools.partial(fetch, source.url, path))
        except Exception as error:  # a dozen kinds, from sockets to Drive's quota page
            raise CarftError(
                f"downloading {source.url} failed ({type(error).__name__}: {error}). Rerun the "
                f"command to resume. {_by_hand(path)}"
            ) from error
        with _renaming_damaged(sources, work):
            archives.check(path, source.is_archive)


def with_time_limit(download: Callable[[], object]) -> None:
    """Call ``download`` in a thread; raise TimeoutError once it makes no progress.

    A timeout of its sockets would not end a server that sends a byte at a time.
    """
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(download())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    bytes_before = _bytes_moved()
    while not concurrent.futures.wait([future], PATIENCE_SECONDS).done:
        bytes_now = _bytes_moved()
        if bytes_now - bytes_before < _MIN_PROGRESS:
            raise TimeoutError(f"the server has sent next to nothing for {PATIENCE_SECONDS:.0f} s")
        bytes_before = bytes_now
    future.result()


def _bytes_moved() -> int:
    """Return how many bytes this process has read from files and written to them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines[:2])  # rchar and wchar


def _prepare(sources: Sequence[benchmarks.Source], work: _WorkFolder, prepare: Prepare) -> None:
    """Unpack the archives and make the dataset. Raises CarftError for one that is damaged."""
    with _renaming_damaged(sources, work):
        for source in sources:
            path = work.archives / source.file
            if source.is_archive:
                archives.unpack(path, work.unpacked)
            else:
                shutil.copy(path, work.unpacked / source.file)
        prepare(work.unpacked, work.ready)


@contextlib.contextmanager
def _renaming_damaged(sources: Sequence[benchmarks.Source], work: _WorkFolder) -> Iterator[None]:
    """Rename an archive for which the block raises BadFile, so that it is fetched again.

    Raises CarftError instead, which says where the archive is from.
    """
    try:
        yield
    except BadFile as error:
        path = work.archives / error.name
        renamed = path.rename(work.archives / f"{error.name}.damaged")
        url = next(source.url for source in sources if source.file == error.name)
        raise CarftError(
            f"{path}, from {url}, {error.fault}; the file was renamed to {renamed.name}. Rerun the "
            f"command to download again. {_by_hand(path)}"
        ) from error


def _by_hand(path: Path) -> str:
    return (
        f"For a dead link get the file by hand, save it as {path} (create the folder), and rerun "
        "the command"
    )


def _fetch(url: str, path: Path) -> None:
    """Fetch a file by gdown, which knows Google Drive's detours and resumes a partial file."""
    try:
        import gdown
        from gdown.exceptions import DownloadError  # noqa: F401  (before 6, gdown raises no errors)
    except ImportError as error:
        raise CarftError(
            "downloading needs gdown 6.3 or later: pip install 'gdown>=6.3'"
        ) from error
    gdown.download(url, str(path), resume=True)
