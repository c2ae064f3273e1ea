"""``carft data download``: from DomainBed's own sources to a folder that is known to be right.

Archives stay in a work folder beside the data set until it is complete: what was fetched, or put
there by hand, is not fetched again. After upstream's domainbed/scripts/download.py at b93c22a.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shlex
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from domainbed_carft.data import archives, benchmarks, verify
from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing

Fetch = Callable[[str, Path], None]
Prepare = Callable[[Path, Path], None]
Judge = Callable[[str, Path], verify.Report]

# Benchmark -> the folder in its archive that has all of it.
INNER = {"PACS": "kfold", "VLCS": "VLCS", "OfficeHome": "OfficeHomeDataset_10072016"}

TERRA_PICTURES = "eccv_18_all_images_sm"
TERRA_ANNOTATIONS = "eccv_18_annotation_files"
TERRA_PARTS = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
TERRA_FILES = tuple(f"{part}_annotations.json" for part in TERRA_PARTS)
TERRA_ARCHIVE = "eccv_18_annotations.tar.gz"
DOMAIN_NET_DUPLICATES = "domain_net_duplicates.txt"
DUPLICATES = 9431  # lines of that file at b93c22a


def download(
    name: str, data_dir: Path, fetch: Fetch | None = None, accept_different: bool = False
) -> verify.Report:
    """Fetch, unpack, prepare and verify the benchmark ``name``; only then is it in ``data_dir``.

    ``fetch(url, path)`` gets one file, resuming an earlier attempt. Returns the
    verification's report, whose verdict is "verified", or with ``accept_different`` "differs".
    Raises CarftError, with nothing fetched lost, for a source that fails (saying what to put where
    by hand), wrong archives, data that is not as known, a place that is taken, and a full disk.
    """
    benchmark = benchmarks.get(name)
    if not benchmark.sources:
        raise CarftError(f"{name} is in the package; there is nothing to download")
    ready = functools.partial(prepare, name)
    place = data_dir / benchmark.folder
    return install(name, place, benchmark.sources, ready, verify.verify, fetch, accept_different)


def install(
    name: str, target: Path, sources: Sequence[benchmarks.Source], prepare: Prepare, judge: Judge,
    fetch: Fetch | None = None, accept_different: bool = False,
) -> verify.Report:  # fmt: skip
    """As `download`, of anything to the folder ``target``: ``prepare(unpacked, ready)`` makes the
    folder ``ready`` of what the archives held, ``judge(name, data_dir)`` verifies it.
    """
    data_dir = target.parent
    if target.exists():
        raise CarftError(
            f"{target} already exists; check the data with `carft data verify {name} --data_dir "
            f"{shlex.quote(str(data_dir))}`, or move the folder away to download again"
        )
    work = data_dir / f".{target.name}.download"
    ready = work / "ready" / target.name
    folders = work / "unpacked", ready.parent, work / "archives", work
    try:
        with removing_empty_folders(*folders):
            _make(ready, sources, work, prepare, fetch or _fetch)
            report = judge(name, ready.parent)
            _require_expected(report, ready, work, accept_different)
            ready.rename(target)
    except OSError as error:
        raise CarftError(
            f"{name} cannot be installed in {data_dir}: {error}. Downloaded files are kept: free "
            "disk space or give another --data_dir, then rerun the command"
        ) from error
    shutil.rmtree(work, ignore_errors=True)
    return dataclasses.replace(report, root=target)


def _require_expected(
    report: verify.Report, ready: Path, work: Path, accept_different: bool
) -> None:
    """Raise CarftError for data that is broken, or differs and is not accepted."""
    if not report.problems and (report.verdict != "differs" or accept_different):
        return
    sentences = report.problems or [*report.differences, *report.notes]
    remedy = "" if report.problems else ". To install the data anyway: --accept_different"
    raise CarftError(
        f"{report.name} was downloaded but is not as expected: {'; '.join(sentences)}. The data is "
        f"in {ready.parent}. To download an archive again, delete the file in {work / 'archives'} "
        f"and rerun{remedy}"
    )


@contextlib.contextmanager
def removing_empty_folders(*folders: Path) -> Iterator[None]:
    """Remove those of the ``folders`` that are empty if the block raises.

    So too their common parent, the data folder, if it was not there before.
    """
    data_dir = Path(os.path.commonpath(folders)).parent
    added = () if data_dir.exists() else (data_dir,)
    try:
        yield
    except BaseException:
        for folder in (*folders, *added):
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()
        raise


def _make(
    ready: Path, sources: Sequence[benchmarks.Source], work: Path, prepare: Prepare, fetch: Fetch
) -> None:
    fetched, unpacked = work / "archives", work / "unpacked"
    for folder in (unpacked, ready.parent):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    fetched.mkdir(exist_ok=True)
    by_hand = (
        "For a dead link get the file by hand, save it as {} (create the folder), and rerun the "
        "command"
    )
    try:
        for source in sources:
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
        for source in sources:
            if source.is_archive:
                archives.unpack(fetched / source.file, unpacked)
            else:
                shutil.copy(fetched / source.file, unpacked / source.file)
        prepare(unpacked, ready)
    except BadFile as bad:
        path = fetched / bad.name
        aside = path.rename(fetched / f"{bad.name}.damaged")
        url = next(source.url for source in sources if source.file == bad.name)
        raise CarftError(
            f"{path}, from {url}, {bad.fault}; the file was renamed to {aside.name}. Rerun the "
            f"command to download again. {by_hand.format(path)}"
        ) from bad


def _fetch(url: str, path: Path) -> None:
    """By gdown, which knows Google Drive's detours and resumes a partial file."""
    try:
        import gdown
        from gdown.exceptions import DownloadError  # noqa: F401  (those before 6 tell no errors)
    except ImportError as error:
        raise CarftError(
            "downloading needs gdown 6.3 or later: pip install 'gdown>=6.3'"
        ) from error
    gdown.download(url, str(path), resume=True)


def prepare(name: str, unpacked: Path, ready: Path) -> None:
    """Make the folder ``ready`` of the benchmark ``name`` from what its archives held.

    Raises BadFile for a damaged list or annotation file, CarftError for archives of something else.
    """
    if name == "DomainNet":
        _domain_net(unpacked, ready)
    elif name == "TerraIncognita":
        _terra_incognita(unpacked, ready)
    else:
        _required(unpacked / INNER[name]).rename(ready)


def _domain_net(unpacked: Path, ready: Path) -> None:
    """Six archives of a folder each, and the list of what is in them twice."""
    folders = [environment.folder for environment in benchmarks.get("DomainNet").environments]
    form = re.compile(rf"({'|'.join(folders)})(/(?!\.)[^/]+){{2}}")
    text = _required(unpacked / DOMAIN_NET_DUPLICATES).read_text("utf-8", errors="replace")
    lines = text.split()
    if len(lines) != DUPLICATES or not all(map(form.fullmatch, lines)):
        fault = f"is damaged or another list, not {DUPLICATES:,} times environment/class/picture"
        raise BadFile(DOMAIN_NET_DUPLICATES, fault)
    ready.mkdir()
    for folder in folders:
        _required(unpacked / folder).rename(ready / folder)
    for line in lines:
        (ready / line).unlink(missing_ok=True)


def _terra_incognita(unpacked: Path, ready: Path) -> None:
    """One folder of pictures, and annotation files that say where each was taken, and of what."""
    pictures = _required(unpacked / TERRA_PICTURES)
    annotations = _required(unpacked / TERRA_ANNOTATIONS)
    images: dict[object, tuple[str, str]] = {}  # picture id -> location and file
    seen: defaultdict[object, set[str]] = defaultdict(set)  # picture id -> what is on it
    for name in TERRA_FILES:
        file = _required(annotations / name)
        try:
            content = parsing.parse_json(file.read_bytes())
            for item in content["images"]:
                images[item["id"]] = (str(item["location"]), str(item["file_name"]))
            categories = {item["id"]: str(item["name"]) for item in content["categories"]}
            for item in content["annotations"]:
                seen[item["image_id"]].add(categories.get(item["category_id"], ""))
        except (ValueError, LookupError, TypeError) as error:
            fault = f"is damaged: its {name} is not JSON with images, categories and annotations"
            raise BadFile(TERRA_ARCHIVE, fault) from error
    # Else another file of this machine could be called a picture.
    if outside := [file_name for _, file_name in images.values() if "/" in file_name]:
        raise CarftError(
            f"{TERRA_ARCHIVE} names a picture {outside[0]!r} outside the folder of pictures; "
            "nothing was installed. Do not use this archive"
        )
    known = benchmarks.get("TerraIncognita")
    folders = [environment.folder for environment in known.environments]
    for picture, (location, file_name) in images.items():
        if (folder := f"location_{location}") in folders:
            for category in seen[picture] & set(known.classes):
                place = ready / folder / category
                place.mkdir(parents=True, exist_ok=True)
                # Copied, as upstream does: a picture may belong to two classes.
                shutil.copyfile(_required(pictures / file_name), place / file_name)


def _required(path: Path) -> Path:
    if not path.exists():
        raise CarftError(
            f"the archives lack {path.name!r} (expected in {path.parent}): they are not the "
            "edition that DomainBed uses. Replace or delete them in the folder archives beside "
            "it, then rerun the command"
        )
    return path
