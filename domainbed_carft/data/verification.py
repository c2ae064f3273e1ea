"""Data verification: of a benchmark by its name, or of any dataset by its path."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft import escaping, process_variables, suggestions, text_tables, wording
from domainbed_carft.data import benchmarks, comparison, emoji
from domainbed_carft.data.comparison import Counts, quote_names
from domainbed_carft.data.image_files import DamagedImage, find_damaged_images
from domainbed_carft.data.listing import Listing, is_list, list_environments
from domainbed_carft.errors import CarftError

# Rows of the printed table: a folder of classes can be mistaken for a folder of environments.
MAX_ENVIRONMENTS = 50

# Data folders with a printed warning, because forks build a dataset more than once.
_warned: set[Path] = set()


@dataclass(frozen=True)
class DataReport:
    """The result of a data verification; sentences include what to do."""

    name: str
    root: Path
    counts: Counts  # environment -> class -> number of images, in label order
    problems: Sequence[str]  # sentences; jobs would fail or give wrong results
    differences: Sequence[str]  # sentences; deviations from the known dataset
    notes: Sequence[str]
    edition: str | None  # the known edition with these counts
    decoded: bool = False  # every image was decoded
    damaged: Sequence[DamagedImage] = ()  # empty unless decoded

    @property
    def status(self) -> str:
        """One of "verified", "consistent" (without known counts), "differs" and "broken"."""
        if self.problems:
            return "broken"
        if self.differences:
            return "differs"
        return "verified" if self.edition else "consistent"

    @property
    def error_text(self) -> str:
        """Message about broken data: the problems, and the command for details."""
        location = "" if str(self.root) == self.name else f" in {self.root}"
        arguments = shlex.quote(self.name if is_list(self.name) else str(self.root))
        if benchmarks.is_known_name(self.name):
            arguments = f"{self.name} --data_dir {shlex.quote(str(self.root.parent))}"
        return (
            f"the data of {self.name}{location} is broken: {'; '.join(self.problems)}. "
            f"For details run `carft data verify {arguments}`"
        )

    @property
    def data_edition(self) -> str:
        """Value for a job's records: the status, and the edition or a digest of the counts."""
        parts = [self.edition] if self.edition else []
        if self.status in ("differs", "consistent"):
            parts.append(comparison.counts_digest(self.counts))
        return f"{self.status}: {', '.join(parts)}" if parts else self.status

    @property
    def images(self) -> int:
        """Number of images in all environments."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `carft data verify --json` prints."""
        facts = {**asdict(self), "root": str(self.root), "status": self.status}
        return {**facts, "data_edition": self.data_edition, "images": self.images}

    def as_text(self) -> str:
        """Format a table of the environments, a line for each finding, and the status."""
        lines = [f"{self.name} in {self.root}"]
        lines += [f"problem: {sentence}" for sentence in self.problems]
        lines += [f"difference: {sentence}" for sentence in self.differences]
        lines += [f"note: {sentence}" for sentence in self.notes]
        lines += [f"damaged: {image.path} ({image.reason})" for image in self.damaged]
        lines.append(f"{self.status}: {self._status_meaning()}")
        lines = [escaping.printable(line) for line in lines]

        rows = [
            (name, f"{sum(classes.values()):,}", f"{len(classes):,}")
            for name, classes in self.counts.items()
        ]
        if rows:
            table = text_tables.table(("environment", "images", "classes"), rows)
            lines[1:1] = wording.limit_lines(table.splitlines(), MAX_ENVIRONMENTS + 1)
        return "\n".join(lines)

    def _status_meaning(self) -> str:
        images = f"{self.images:,} images"
        if self.decoded:
            images += ", each decoded"
        meanings = {
            "verified": f"the {images}, {benchmarks.edition_label(self.edition or '')}",
            "consistent": f"{images}; there are no published counts to compare with",
            "differs": f"{images}; usable, but results may differ from published ones",
            "broken": "jobs would fail or give wrong results",
        }
        return meanings[self.status]


@contextlib.contextmanager
def report_broken_data(report: DataReport | None, hparams: Any) -> Iterator[None]:
    """Load a dataset in the block, and report broken data.

    Algorithms of this package end the job with the problems when they are built, so only an error
    of the block is explained by the problems. For all other algorithms, they are a warning.

    Args:
        report: the report on the data, None if the data was not verified.
        hparams: the job's hyperparameters.
    """
    if report is None or not report.problems:
        yield
        return

    is_refused_later = isinstance(hparams, dict) and "clip_backbone" in hparams
    if not is_refused_later and report.root not in _warned:
        _warned.add(report.root)
        escaping.print_lines(
            f"domainbed-carft: Warning: {report.error_text}. The job continues, "
            "but its results could be wrong; fix the data and rerun the job "
            f"({process_variables.DISABLE.name}=1 disables this verification).",
            stream=sys.stderr,
        )

    try:
        yield
    except Exception as error:
        if not is_refused_later:
            raise
        reason = " ".join(str(error).split())
        raise CarftError(f"{report.error_text}. It cannot be loaded: {reason}") from error


def verify(name_or_path: str, data_dir: Path | None = None, decode: bool = False) -> DataReport:
    """Verify a benchmark below ``data_dir`` by its name, or any dataset by its path.

    Args:
        name_or_path: name of a benchmark, folder environment/class/image, or CSV file that lists
            images.
        data_dir: folder of the datasets' folders.
        decode: decode every image.

    Raises:
        CarftError: if the benchmark is unknown or the folder is missing.
    """
    if name_or_path not in benchmarks.BENCHMARKS:
        if os.path.exists(name_or_path):
            return verify_folder(name_or_path, Path(name_or_path), decode)
        unknown = suggestions.unknown("benchmark", name_or_path, benchmarks.BENCHMARKS)
        raise CarftError(f"no such folder, and {unknown}")

    folder = benchmarks.get(name_or_path).folder
    if not folder:
        return verify_folder(name_or_path, emoji.environment_folder(name_or_path), decode)

    if data_dir is None:
        raise CarftError(f"{name_or_path} needs --data_dir, the folder that contains {folder!r}")
    for problem in benchmarks.data_dir_problems(data_dir):
        raise CarftError(problem)
    if not os.path.isdir(data_dir / folder):
        raise CarftError(
            f"{data_dir / folder} does not exist, expected the data of {name_or_path} there; "
            "rename the folder, unpack the archives, or pass another --data_dir"
        )
    return verify_folder(name_or_path, data_dir / folder, decode)


def verify_folder(name: str, root: Path, decode: bool = False) -> DataReport:
    """Verify the folder of the dataset ``name``; raise CarftError if it cannot be read."""
    return verify_listing(name, list_environments(root), decode)


def verify_listing(name: str, listing: Listing, decode: bool = False) -> DataReport:
    """Verify the listed folder of the dataset ``name``."""
    findings = comparison.compare(name, listing.counts, is_list(name))
    report = DataReport(
        name=name,
        root=listing.root,
        counts=listing.counts,
        problems=[*findings.problems, *listing.problems],
        differences=findings.differences,
        notes=[*findings.notes, *listing.notes],
        edition=findings.edition,
        decoded=decode,
    )

    if not decode:
        return report
    reported = {path for paths in listing.faults.values() for path in paths}
    return add_decoding_faults(report, [p for p in listing.images if p not in reported])


def add_decoding_faults(report: DataReport, images: Sequence[str]) -> DataReport:
    """Decode ``images``, paths below the root, if ``report.decoded``, and add faults."""
    if not report.decoded:
        return report

    damaged = find_damaged_images(report.root, images)
    unreadable = [image.path for image in damaged if not image.truncated]
    truncated = [image.path for image in damaged if image.truncated]
    return replace(
        report,
        problems=[*report.problems, *_damage_sentences(unreadable, "cannot be decoded")],
        differences=[
            *report.differences,
            *_damage_sentences(truncated, "cut off; the missing part is read as grey"),
        ],
        damaged=damaged,
    )


def _damage_sentences(paths: Sequence[str], fault: str) -> list[str]:
    """Return a sentence about images with a fault, if there are any."""
    if not paths:
        return []
    count = wording.quantity(len(paths), "image")
    return [f"{count} {fault} (restore the original): {quote_names(paths)}"]
