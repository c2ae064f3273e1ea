"""Whether data is what it should be: by name against a benchmark, by path against itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft import text
from domainbed_carft.data import benchmarks, comparison, emoji
from domainbed_carft.data.comparison import Counts, quote_names
from domainbed_carft.data.image_files import DamagedImage, find_damaged_images
from domainbed_carft.data.listing import Listing, list_environments
from domainbed_carft.errors import CarftError

# Of the table that is printed: a folder of classes may be taken for one of environments.
MAX_ENVIRONMENTS = 50


@dataclass(frozen=True)
class DataReport:
    """What a verification found; each sentence says what to do."""

    name: str
    root: Path
    counts: Counts  # environment -> class -> images, in label order
    problems: Sequence[str]  # with these, jobs fail or give wrong results
    differences: Sequence[str]  # from what is known of the dataset
    notes: Sequence[str]
    edition: str | None  # the known edition with these counts
    decoded: bool = False
    damaged: Sequence[DamagedImage] = ()  # known only if ``decoded``

    @property
    def verdict(self) -> str:
        """One of "verified", "consistent" (nothing is known of it), "differs" and "broken"."""
        if self.problems:
            return "broken"
        if self.differences:
            return "differs"
        return "verified" if self.edition else "consistent"

    @property
    def refusal(self) -> str:
        """A sentence: the data is broken, why, and the command for details."""
        location = "" if str(self.root) == self.name else f" in {self.root}"
        arguments = shlex.quote(str(self.root))
        if benchmarks.is_known_name(self.name):
            arguments = f"{self.name} --data_dir {shlex.quote(str(self.root.parent))}"
        return (
            f"the data of {self.name}{location} is broken: {'; '.join(self.problems)}. "
            f"For details run `carft data verify {arguments}`"
        )

    @property
    def data_edition(self) -> str:
        """For a job's records: the verdict, the edition, and a digest of counts without one."""
        parts = [self.edition] if self.edition else []
        if self.verdict in ("differs", "consistent"):
            parts.append(comparison.counts_digest(self.counts))
        return f"{self.verdict}: {', '.join(parts)}" if parts else self.verdict

    @property
    def images(self) -> int:
        """Images in all environments."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """The report as `carft data verify --json` prints it."""
        facts = {**asdict(self), "root": str(self.root), "verdict": self.verdict}
        return {**facts, "data_edition": self.data_edition, "images": self.images}

    def as_text(self) -> str:
        """A table of the environments, one line per finding, and the verdict last."""
        lines = [f"{self.name} in {self.root}"]
        lines += [f"problem: {sentence}" for sentence in self.problems]
        lines += [f"difference: {sentence}" for sentence in self.differences]
        lines += [f"note: {sentence}" for sentence in self.notes]
        lines += [f"damaged: {image.path} ({image.reason})" for image in self.damaged]
        lines.append(f"{self.verdict}: {self._verdict_meaning()}")
        lines = [text.printable(line) for line in lines]

        rows = [
            (name, f"{sum(classes.values()):,}", f"{len(classes):,}")
            for name, classes in self.counts.items()
        ]
        if rows:
            table = text.table(("environment", "images", "classes"), rows)
            lines[1:1] = text.limit_lines(table.splitlines(), MAX_ENVIRONMENTS + 1)
        return "\n".join(lines)

    def _verdict_meaning(self) -> str:
        images = f"{self.images:,} images"
        if self.decoded:
            images += ", each decoded"
        meanings = {
            "verified": f"the {images}, {benchmarks.edition_label(self.edition or '')}",
            "consistent": f"{images}; there are no published counts to compare with",
            "differs": f"{images}; usable, but results may not compare with published ones",
            "broken": "jobs would fail or give wrong results",
        }
        return meanings[self.verdict]


def verify(name_or_path: str, data_dir: Path | None = None, decode: bool = False) -> DataReport:
    """Verify a benchmark below ``data_dir`` by its name, or any dataset by its folder's path.

    ``decode`` decodes every image. Raises CarftError for an unknown benchmark or a missing
    folder.
    """
    if name_or_path not in benchmarks.BENCHMARKS:
        if os.path.exists(name_or_path):
            return verify_folder(name_or_path, Path(name_or_path), decode)
        unknown = text.unknown("benchmark", name_or_path, benchmarks.BENCHMARKS)
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
            "rename the folder, unpack the archives, or give another --data_dir"
        )
    return verify_folder(name_or_path, data_dir / folder, decode)


def verify_folder(name: str, root: Path, decode: bool = False) -> DataReport:
    """Verify the folder ``root`` as that of the dataset ``name``; decode its images if asked.

    Raises CarftError where it is not a folder, or cannot be read.
    """
    return verify_listing(name, list_environments(root), decode)


def verify_listing(name: str, listing: Listing, decode: bool = False) -> DataReport:
    """Verify a listed folder as that of the dataset ``name``; decode its images if asked."""
    findings = comparison.compare(name, listing.counts)
    report = DataReport(
        name=name,
        root=listing.root,
        counts=listing.counts,
        problems=[*findings.problems, *listing.problems],
        differences=findings.differences,
        notes=findings.notes,
        edition=findings.edition,
        decoded=decode,
    )

    reported = {path for paths in listing.faults.values() for path in paths}
    return add_decoding_faults(report, [p for p in listing.images if p not in reported])


def add_decoding_faults(report: DataReport, images: Sequence[str]) -> DataReport:
    """The report, with what decoding ``images``, paths below its root, adds to it.

    They are decoded only if the report is ``decoded``.
    """
    if not report.decoded:
        return report

    damaged = find_damaged_images(report.root, images)
    unreadable = [image.path for image in damaged if not image.truncated]
    truncated = [image.path for image in damaged if image.truncated]
    return replace(
        report,
        problems=[*report.problems, *_download_again(unreadable, "cannot be decoded")],
        differences=[
            *report.differences,
            *_download_again(truncated, "cut off and read with grey where the data ends"),
        ],
        damaged=damaged,
    )


def _download_again(paths: Sequence[str], fault: str) -> list[str]:
    """A sentence about images with a fault, if there are any."""
    if not paths:
        return []
    count = text.quantity(len(paths), "image")
    return [f"{count} {fault} (download again): {quote_names(paths)}"]
