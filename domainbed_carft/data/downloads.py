"""``carft data download``: from DomainBed's sources to a verified folder.

Archives are kept in a work folder next to the dataset until the dataset is complete. An archive
that is already there is not downloaded again; files of the user are linked there. Follows
upstream's domainbed/scripts/download.py at b93c22a.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.data import archives, benchmarks, preparation, verification
from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import CarftError

Fetch = Callable[[str, Path], None]
Prepare = Callable[[Path, Path], None]
Verify = Callable[[str, Path], verification.DataReport]

# A download fails if the process reads and writes fewer bytes than the minimum in this time.
PATIENCE_SECONDS = 60.0
_MIN_PROGRESS_BYTES = 1 << 18

_MANUAL_HINT = "If the link is dead, get the file elsewhere, and rerun the command with --from FILE"


def download(
    name: str,
    data_dir: Path,
    fetch: Fetch | None = None,
    accept_different: bool = False,
    given_files: Sequence[Path] = (),
) -> verification.DataReport:
    """Download, unpack, prepare and verify a benchmark, and then move it to ``data_dir``.

    Args:
        name: name of the benchmark.
        data_dir: folder of the datasets' folders.
        fetch: function of a URL and a path that downloads a file, or resumes the download.
        accept_different: accept data that differs from the known editions.
        given_files: files that need no download, or folders that contain them. They are only read.

    Returns:
        The report of the verification; its status is "verified", or "differs" if accepted.

    Raises:
        CarftError: if a source fails, archives or data are not as expected, the dataset already
            exists, or the disk is full. Downloaded archives are kept.
    """
    benchmark = benchmarks.get(name)
    if not benchmark.sources:
        raise CarftError(f"{name} is in the package; there is nothing to download")
    return install(
        name,
        target=data_dir / benchmark.folder,
        sources=benchmark.sources,
        prepare=functools.partial(preparation.prepare, name),
        verify_data=verification.verify,
        fetch=fetch,
        accept_different=accept_different,
        given_files=given_files,
    )


def install(
    name: str,
    target: Path,
    sources: Sequence[benchmarks.Source],
    prepare: Prepare,
    verify_data: Verify,
    fetch: Fetch | None = None,
    accept_different: bool = False,
    given_files: Sequence[Path] = (),
) -> verification.DataReport:
    """Download and unpack ``sources``, prepare and verify the data, and move it to ``target``.

    Args:
        name: name of the dataset.
        target: the dataset's folder.
        sources: files to download.
        prepare: function of a folder with the unpacked files and a folder to create from them.
        verify_data: function of the name and a data folder that returns a report.
        fetch: see `download`.
        accept_different: see `download`.
        given_files: see `download`.

    Returns:
        The report of the verification.

    Raises:
        CarftError: see `download`.
    """
    data_dir = target.parent
    if target.exists():
        raise CarftError(
            f"{target} already exists; verify the data with `carft data verify {name} --data_dir "
            f"{shlex.quote(str(data_dir))}`, or move the folder away to download again"
        )

    files_by_source = _find_given_files(name, sources, given_files)
    work = _WorkFolder(data_dir / f".{target.name}.download", target.name)
    try:
        with remove_empty_folders_on_error(
            work.unpacked, work.ready.parent, work.archives, work.root
        ):
            work.clear()
            _link_given_files(files_by_source, work)
            _fetch_all(sources, work, fetch or _fetch)
            _prepare(sources, work, prepare)
            report = verify_data(name, work.ready.parent)
            _require_expected(report, work, accept_different)
            work.ready.rename(target)
    except OSError as error:
        raise CarftError(
            f"{name} cannot be installed in {data_dir}: {error}. Downloaded files are kept: free "
            "disk space or pass another --data_dir, then rerun the command"
        ) from error

    shutil.rmtree(work.root, ignore_errors=True)
    return dataclasses.replace(report, root=target)


@dataclasses.dataclass(frozen=True)
class _WorkFolder:
    """The folder next to a dataset in which the dataset is prepared."""

    root: Path
    dataset: str  # name of the dataset's folder

    @property
    def archives(self) -> Path:
        """Files that were downloaded or put there by hand, and links to files of the user."""
        return self.root / "archives"

    @property
    def unpacked(self) -> Path:
        """Contents of the archives."""
        return self.root / "unpacked"

    @property
    def ready(self) -> Path:
        """The prepared dataset."""
        return self.root / "ready" / self.dataset

    def clear(self) -> None:
        """Create the folders, and delete files of earlier attempts, except archives."""
        for folder in (self.unpacked, self.ready.parent):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.archives.mkdir(exist_ok=True)


def _require_expected(
    report: verification.DataReport, work: _WorkFolder, accept_different: bool
) -> None:
    """Raise CarftError for data that is broken, or differs and is not accepted."""
    if not report.problems and (report.status != "differs" or accept_different):
        return

    sentences = report.problems or [*report.differences, *report.notes]
    hint = "" if report.problems else ". To install the data anyway, pass --accept-different"
    raise CarftError(
        f"{report.name} was unpacked but is not as expected: {'; '.join(sentences)}. The data is "
        f"in {work.ready.parent}. To download an archive again, delete the file in {work.archives} "
        f"and rerun{hint}"
    )


@contextlib.contextmanager
def remove_empty_folders_on_error(*folders: Path) -> Iterator[None]:
    """Remove empty ``folders`` if the block raises, and also their parent if it is new."""
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


def _find_given_files(
    name: str, sources: Sequence[benchmarks.Source], given: Sequence[Path]
) -> dict[str, Path]:
    """Return the user's files by the names of the sources; raise CarftError for any other file.

    If a dataset has a single source, its file can have any name.
    """
    expected = f"expected {' or '.join(source.file for source in sources)}"
    files: dict[str, Path] = {}
    for path in given:
        if not path.exists():
            raise CarftError(f"--from {path} does not exist; {expected}, or a folder that has it")

        if path.is_dir():
            names = [source.file for source in sources if (path / source.file).is_file()]
            if not names:
                raise CarftError(f"--from {path} has no file of {name}, {expected}")
            files |= {file: path / file for file in names}
        elif len(sources) == 1:
            files[sources[0].file] = path
        elif path.name in {source.file for source in sources}:
            files[path.name] = path
        else:
            raise CarftError(f"--from {path} is not a file of {name}, {expected}")

    for source in sources:
        if source.file in files:
            archives.check(files[source.file], source.is_archive)
    return files


def _link_given_files(files: Mapping[str, Path], work: _WorkFolder) -> None:
    """Link the user's files into the work folder, where the links replace those of before."""
    for name, path in files.items():
        link = work.archives / name
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise CarftError(f"{link} already exists; delete it to use {path}")
        link.symlink_to(path.resolve())


def _fetch_all(sources: Sequence[benchmarks.Source], work: _WorkFolder, fetch: Fetch) -> None:
    """Download the missing archives; raise CarftError for one that fails or is damaged."""
    for source in sources:
        path = work.archives / source.file
        try:
            if not path.is_file():
                path.unlink(missing_ok=True)  # a link to a file that the user has moved
                print(f"{path.name}: fetching {source.url}", file=sys.stderr)
                with_time_limit(functools.partial(fetch, source.url, path))
        except Exception as error:  # a dozen types, from sockets to Google Drive's quota page
            raise CarftError(
                f"downloading {source.url} failed ({type(error).__name__}: {error}). Rerun the "
                f"command to resume. {_MANUAL_HINT}"
            ) from error
        with _rename_damaged(sources, work):
            archives.check(path, source.is_archive)


def with_time_limit(download: Callable[[], object]) -> None:
    """Call ``download`` in a thread, and raise TimeoutError when it makes no progress."""
    # A timeout of the sockets would not catch a server that sends one byte at a time.
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
        if bytes_now - bytes_before < _MIN_PROGRESS_BYTES:
            raise TimeoutError(f"the server has sent almost nothing for {PATIENCE_SECONDS:.0f} s")
        bytes_before = bytes_now
    future.result()


def _bytes_moved() -> int:
    """Return the number of bytes that this process has read from files and written to files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines[:2])  # rchar and wchar


def _prepare(sources: Sequence[benchmarks.Source], work: _WorkFolder, prepare: Prepare) -> None:
    """Unpack the archives and prepare the dataset; raise CarftError for a damaged archive."""
    with _rename_damaged(sources, work):
        for source in sources:
            path = work.archives / source.file
            if source.is_archive:
                archives.unpack(path, work.unpacked)
            else:
                shutil.copy(path, work.unpacked / source.file)
        prepare(work.unpacked, work.ready)


@contextlib.contextmanager
def _rename_damaged(sources: Sequence[benchmarks.Source], work: _WorkFolder) -> Iterator[None]:
    """Rename an archive for which the block raises BadFile, so that it is downloaded again.

    Raises:
        CarftError: instead of BadFile, with the URL of the archive, or the path of the user's file.
    """
    try:
        yield
    except BadFile as error:
        path = work.archives / error.name
        if path.is_symlink():
            given = path.readlink()
            path.unlink()
            raise CarftError(f"{given} {error.fault}. Get the file again") from error

        renamed = path.rename(work.archives / f"{error.name}.damaged")
        url = next(source.url for source in sources if source.file == error.name)
        raise CarftError(
            f"{path}, from {url}, {error.fault}; the file was renamed to {renamed.name}. Rerun the "
            f"command to download again. {_MANUAL_HINT}"
        ) from error


def _fetch(url: str, path: Path) -> None:
    """Download a file with gdown, which handles Google Drive and resumes a partial file."""
    try:
        import gdown
        from gdown.exceptions import DownloadError  # noqa: F401  (before 6, gdown raises no errors)
    except ImportError as error:
        raise CarftError(
            "downloading needs gdown 6.3 or later: pip install 'gdown>=6.3'"
        ) from error
    gdown.download(url, str(path), resume=True)
