"""Whether data is what it should be: by name against a benchmark, by path against itself.

``verify`` looks at a folder, ``judge`` at counts that a job has anyhow.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft.data import benchmarks, comparison, listing, places
from domainbed_carft.data.comparison import Counts, Findings, listed

if TYPE_CHECKING:
    from domainbed_carft.data.decoding import Damaged


@dataclass(frozen=True)
class Report:
    """What was found of one data set.

    ``counts``: environment -> class -> pictures, in label order. ``problems`` give wrong results
    or none, ``differences`` are from what is known, and each is a sentence that says what to do.
    ``edition`` is the known one that has these counts. ``damaged`` pictures are looked for only
    where ``decoded``.
    """

    name: str
    root: Path | None
    counts: Counts
    edition: str | None
    problems: tuple[str, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    decoded: bool = False
    damaged: tuple[Damaged, ...] = ()

    @property
    def verdict(self) -> str:
        """ "verified": all as known; "differs": usable, but not a known edition; "broken".

        "consistent" is what nothing is known of and nothing is wrong with.
        """
        if self.problems:
            return "broken"
        if self.differences:
            return "differs"
        return "verified" if self.edition else "consistent"

    @property
    def refusal(self) -> str:
        """That the data is broken, why, and the command that says more."""
        where = "" if str(self.root) in (self.name, "None") else f" in {self.root}"
        return (
            f"the data of {self.name}{where} is broken: {'; '.join(self.problems)}. "
            f"`{command(self.name, self.root)}` says more"
        )

    @property
    def trainable(self) -> bool:
        """Whether our harness would train on it if it did not look: it then gives wrong results.

        It needs the declared number of environments, the same classes in all, pictures in each.
        """
        known = benchmarks.BENCHMARKS.get(self.name)
        whole = known is None or len(self.counts) == len(known.environments)
        classes = {tuple(inside) for inside in self.counts.values()}
        full = all(all(inside.values()) for inside in self.counts.values())
        return whole and len(classes) == 1 and () not in classes and full

    @property
    def data_edition(self) -> str:
        """What the records of a job on this data say of it.

        The verdict, with the known edition; where the counts are not known ones, with their digest.
        """
        parts = [self.edition] if self.edition else []
        if self.verdict in ("differs", "consistent"):
            parts.append(comparison.digest(self.counts))
        return f"{self.verdict}: {', '.join(parts)}" if parts else self.verdict

    @property
    def pictures(self) -> int:
        """Pictures in all environments."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "folder": None if self.root is None else str(self.root),
            "verdict": self.verdict,
            "edition": self.edition,
            "data_edition": self.data_edition,
            "pictures": self.pictures,
            "environments": [
                {"name": name, "pictures": sum(classes.values()), "classes": dict(classes)}
                for name, classes in self.counts.items()
            ],
            "problems": list(self.problems),
            "differences": list(self.differences),
            "notes": list(self.notes),
            "decoded": self.decoded,
            "damaged": [vars(one) for one in self.damaged],
        }


def command(name: str, root: Path | None) -> str:
    """The command line that looks at a data set again."""
    known = benchmarks.BENCHMARKS.get(name)
    if root is None or (known is not None and known.folder == root.name):
        place = "" if root is None else f" --data_dir {shlex.quote(str(root.parent))}"
        return f"carft data verify {name}{place}"
    return f"carft data verify {shlex.quote(str(root))}"


def judge(name: str, counts: Counts) -> Report:
    """The report on ``counts`` (environment -> class -> pictures, both in order of position).

    Touches no disk. A ``name`` that is no benchmark's has no expectations to meet.
    """
    return _report(name, None, counts, _compared(name, counts))


def verify(name_or_path: str, data_dir: Path | None = None, decode: bool = False) -> Report:
    """List the folder of a benchmark below ``data_dir``, or any other, and say what it holds.

    ``decode`` reads every picture, which takes as long as an epoch; else only directories and
    sizes are read. Raises CarftError where there is no such benchmark or folder.
    """
    return examine(*places.place(name_or_path, data_dir), decode)


def examine(name: str, root: Path, decode: bool = False) -> Report:
    """The same of the folder ``root``, as that of the data set ``name``."""
    found = listing.read(root, with_pictures=decode)
    findings = _compared(name, found.counts)
    if name not in benchmarks.BENCHMARKS:
        _perhaps_too_deep(found, findings)
        _perhaps_known(root.resolve(), findings)
    _odd(found, findings)
    if not decode:
        return _report(name, root, found.counts, findings)
    from domainbed_carft.data import decoding  # Pillow is of no use before

    odd = found.oddities  # of which it is known without
    known = {*odd.empty, *odd.broken_links, *odd.irregular, *odd.resource_forks}
    bad = decoding.damaged(root, [path for path in found.pictures if path not in known])
    _damaged(bad, findings)
    return _report(name, root, found.counts, findings, decoded=True, damaged=tuple(bad))


def _report(
    name: str, root: Path | None, counts: Counts, findings: Findings, **decoding: Any
) -> Report:
    return Report(
        name,
        root,
        counts,
        findings.edition,
        tuple(findings.problems),
        tuple(findings.differences),
        tuple(findings.notes),
        **decoding,
    )


def _compared(name: str, counts: Counts) -> Findings:
    known = benchmarks.BENCHMARKS.get(name)
    return comparison.with_known(known, counts) if known else comparison.with_each_other(counts)


def _perhaps_known(root: Path, findings: Findings) -> None:
    for known in benchmarks.BENCHMARKS.values():
        if known.folder == root.name:
            command = f"carft data verify {known.name} --data_dir {shlex.quote(str(root.parent))}"
            findings.notes.append(f"to compare with what is known of {known.name}: {command}")


def _perhaps_too_deep(found: listing.Listing, findings: Findings) -> None:
    """One level above the environments everything looks like environments and classes, too."""
    pairs = [f"{e}/{name}" for e, classes in found.counts.items() for name in classes]
    below: dict[str, list[str]] = {pair: [] for pair in pairs}
    for path in found.oddities.nested:
        environment, name, *more = path.split("/")
        if len(more) == 1:
            below[f"{environment}/{name}"] += more
    names = below[pairs[0]] if pairs else []
    same = all(inside == names for inside in below.values())
    if len(names) > 1 and same and set(pairs) <= set(found.oddities.only_below):
        deeper = " or ".join(shlex.quote(str(found.root / e)) for e in found.counts)
        findings.notes.insert(
            0,
            f"no class folder has a picture of its own, and each has the folders {listed(names)}. "
            "If those are the classes, the environments are one level deeper than the folder that "
            f"was given: give {deeper}",
        )


def _odd(found: listing.Listing, findings: Findings) -> None:
    odd, root = found.oddities, shlex.quote(str(found.root))
    problems = {
        ("empty files with a picture's name", "get them again"): odd.empty,
        ("links to no picture", "restore what they point to"): odd.broken_links,
        (
            "pipes, sockets or devices with a picture's name, which would be read without end",
            "remove them",
        ): odd.irregular,
        (
            "macOS resource forks, which are read as pictures",
            f"find {root} -name '._*' -delete",
        ): odd.resource_forks,
        (
            "links to a folder above them, below which pictures are read again and again",
            "remove them",
        ): odd.loops,
        ("folders or links that cannot be read", "mend or delete them"): odd.unreadable,
    }
    for (what, remedy), paths in problems.items():
        if paths:
            findings.problems.append(f"{_counted(what, paths)}; {remedy}")
    notes = {
        "files that are no pictures by their name, and not read": odd.other_files,
        "pictures in no class folder, and not read": odd.loose,
        "folders below a class, whose pictures belong to the class": odd.nested,
    }
    findings.notes += [_counted(what, paths) for what, paths in notes.items() if paths]


def _damaged(bad: list[Damaged], findings: Findings) -> None:
    cut = [one.path for one in bad if one.truncated]
    unread = [one.path for one in bad if not one.truncated]
    if unread:
        findings.problems.append(
            f"{_counted('pictures that cannot be decoded', unread)}: they end a job when it comes "
            "to them; get them again"
        )
    if cut:
        findings.differences.append(
            f"{_counted('pictures that are cut off', cut)}: DomainBed reads them with grey where "
            "their data ends; get them again, unless the published ones are the same"
        )


def _counted(what: str, paths: Sequence[str]) -> str:
    return f"{what}: {len(paths):,} ({listed(paths)})"
