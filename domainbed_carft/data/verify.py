"""Whether data is what it should be: by name against a benchmark, by path against itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from domainbed_carft import text
from domainbed_carft.data import benchmarks, comparison, emoji, listing
from domainbed_carft.data.comparison import Counts, quoted_names
from domainbed_carft.data.listing import DamagedPicture
from domainbed_carft.errors import CarftError

MOST_ENVIRONMENTS = 50  # that are printed: a folder of classes may be taken for one of environments


@dataclass(frozen=True)
class Report:
    """What was found of one data set; the sentences say what to do."""

    name: str
    root: Path
    counts: Counts  # environment -> class -> pictures, in label order
    problems: Sequence[str]  # give wrong results or none
    differences: Sequence[str]  # from what is known
    notes: Sequence[str]
    edition: str | None  # the known one with these counts
    decoded: bool = False
    damaged: Sequence[DamagedPicture] = ()  # looked for only where ``decoded``

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
        where = "" if str(self.root) == self.name else f" in {self.root}"
        again = shlex.quote(str(self.root))
        if benchmarks.is_found_by_name(self.name):
            again = f"{self.name} --data_dir {shlex.quote(str(self.root.parent))}"
        return (
            f"the data of {self.name}{where} is broken: {'; '.join(self.problems)}. "
            f"For details run `carft data verify {again}`"
        )

    @property
    def data_edition(self) -> str:
        """For a job's records: the verdict, the edition, the digest of counts not known."""
        parts = [self.edition] if self.edition else []
        if self.verdict in ("differs", "consistent"):
            parts.append(comparison.counts_digest(self.counts))
        return f"{self.verdict}: {', '.join(parts)}" if parts else self.verdict

    @property
    def pictures(self) -> int:
        """Pictures in all environments."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = {**asdict(self), "root": str(self.root), "verdict": self.verdict}
        return {**facts, "data_edition": self.data_edition, "pictures": self.pictures}

    def as_text(self) -> str:
        """One line per environment, then one per finding, and the verdict last."""
        rows = [
            (name, f"{sum(classes.values()):,}", f"{len(classes):,}")
            for name, classes in self.counts.items()
        ]
        lines = [f"{self.name} in {self.root}"]
        for kind in ("problem", "difference", "note"):
            lines += [f"{kind}: {sentence}" for sentence in getattr(self, f"{kind}s")]
        lines += [f"damaged: {one.path} ({one.reason})" for one in self.damaged]
        pictures = f"{self.pictures:,} pictures{', each decoded' if self.decoded else ''}"
        meaning = {
            "verified": f"the {pictures}, {benchmarks.edition_label(self.edition or '')}",
            "consistent": f"{pictures}; there are no published counts to compare with",
            "differs": f"{pictures}; usable, but results may not compare with published ones",
            "broken": "jobs would fail or give wrong results",
        }
        lines = [text.shown(line) for line in (*lines, f"{self.verdict}: {meaning[self.verdict]}")]
        if rows:
            table = text.table(("environment", "pictures", "classes"), rows)
            lines[1:1] = text.limited(table.splitlines(), MOST_ENVIRONMENTS + 1)
        return "\n".join(lines)


def verify(name_or_path: str, data_dir: Path | None = None, decode: bool = False) -> Report:
    """List the folder of a benchmark below ``data_dir``, or any other, and say what it holds.

    ``decode`` reads every picture. Raises CarftError for an unknown benchmark or a missing folder.
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
    for problem in benchmarks.missing_data_dir(data_dir):
        raise CarftError(problem)
    if not os.path.isdir(data_dir / folder):
        raise CarftError(
            f"{data_dir / folder} does not exist, expected the data of {name_or_path} there; "
            "rename the folder, unpack the archives, or give another --data_dir"
        )
    return verify_folder(name_or_path, data_dir / folder, decode)


def verify_folder(name: str, root: Path, decode: bool = False) -> Report:
    """The same of the folder ``root``, as that of the data set ``name``."""
    found = listing.list_environments(root)
    findings = comparison.compare(name, found.counts)
    findings.problems += found.problems
    told = {path for paths in found.faults.values() for path in paths}
    whole = [path for path in found.pictures if path not in told] if decode else []
    return with_decoding_faults(
        Report(name, root, found.counts, **vars(findings), decoded=decode), whole
    )


def with_decoding_faults(report: Report, pictures: Sequence[str]) -> Report:
    """The report, with what decoding ``pictures``, below its root, adds if it is ``decoded``."""
    if not report.decoded:
        return report
    bad = listing.damaged_pictures(report.root, pictures)
    problems = [*report.problems, *_told(bad, False, "cannot be decoded")]
    grey = _told(bad, True, "cut off and read with grey where the data ends")
    differences = [*report.differences, *grey]
    return replace(report, problems=problems, differences=differences, damaged=bad)


def _told(bad: Sequence[DamagedPicture], truncated: bool, fault: str) -> list[str]:
    paths = [one.path for one in bad if one.truncated is truncated]
    count = text.counted(len(paths), "picture")
    return [f"{count} {fault} (download again): {quoted_names(paths)}"] if paths else []
