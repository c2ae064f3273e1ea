"""Whether data is what it should be: by name against a benchmark, by path against itself.

``verify`` looks at what a user names, ``examine`` at the folder of a data set, ``judge`` at counts
that a job has anyhow.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft import text
from domainbed_carft.data import benchmarks, comparison, emoji, listing
from domainbed_carft.data.comparison import Counts, Findings, listed
from domainbed_carft.data.listing import Damaged
from domainbed_carft.errors import CarftError


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
    problems: Sequence[str]
    differences: Sequence[str]
    notes: Sequence[str]
    edition: str | None
    decoded: bool = False
    damaged: Sequence[Damaged] = ()

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
        named = self.root is None or str(self.root) == self.name
        where = "" if named else f" in {self.root}"
        return (
            f"the data of {self.name}{where} is broken: {'; '.join(self.problems)}. "
            f"`{command(self.name, self.root)}` says more"
        )

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

    def as_text(self) -> str:
        """A line an environment, then everything found, a line each, and the verdict last."""
        rows = [
            (name, f"{sum(classes.values()):,}", f"{len(classes):,}")
            for name, classes in self.counts.items()
        ]
        lines = [f"{self.name} in {self.root}"]
        lines += [text.table(("environment", "pictures", "classes"), rows)] if rows else []
        lines += [f"problem: {sentence}" for sentence in self.problems]
        lines += [f"difference: {sentence}" for sentence in self.differences]
        lines += [f"note: {sentence}" for sentence in self.notes]
        for one in self.damaged:
            state = "cut off" if one.truncated else "cannot be decoded"
            lines.append(f"{state}: {one.path} ({one.reason})")
        if self.verdict in ("differs", "consistent"):
            lines.append(f"jobs record this as data_edition: {self.data_edition}")
        pictures = f"{self.pictures:,} pictures{', each decoded' if self.decoded else ''}"
        meaning = {
            "verified": f"the {pictures}, {self.edition}",
            "consistent": f"{pictures}; nothing is known to compare them with",
            "differs": f"{pictures}; usable, but results may not compare with published ones",
            "broken": "results would be wrong, or there would be none",
        }
        lines.append(f"{self.verdict}: {meaning[self.verdict]}")
        return "\n".join(map(text.shown, "\n".join(lines).split("\n")))


def verify(name_or_path: str, data_dir: Path | None = None, decode: bool = False) -> Report:
    """List the folder of a benchmark below ``data_dir``, or any other, and say what it holds.

    ``decode`` reads every picture, which takes as long as an epoch; else only directories and
    sizes are read. Raises CarftError where there is no such benchmark or folder.
    """
    if name_or_path in benchmarks.BENCHMARKS:
        return examine(name_or_path, _folder(name_or_path, data_dir), decode)
    if os.path.isdir(name_or_path):
        return examine(name_or_path, Path(name_or_path), decode)
    if os.path.exists(name_or_path):
        raise CarftError(f"{name_or_path} is a file, expected the folder of the environments")
    unknown = text.unknown("benchmark", name_or_path, benchmarks.BENCHMARKS)
    raise CarftError(f"there is no such folder, and {unknown}")


def examine(name: str, root: Path, decode: bool = False) -> Report:
    """The same of the folder ``root``, as that of the data set ``name``."""
    found = listing.read(root, with_pictures=decode)
    findings = _compared(name, found.counts)
    if name not in benchmarks.BENCHMARKS:
        _hint(found, findings)
    findings.problems += [
        *_counted(found.empty, "empty file", "to download again"),
        *_counted(found.broken_links, "link", "to nothing; restore the target"),
        *_counted(found.unreadable, "path", "that cannot be read; repair or delete"),
        *_counted(found.not_pictures, "macOS file", "that would be read as pictures; delete"),
    ]
    findings.notes += _counted(found.ignored, "file", "not read as pictures")
    if not decode:
        return Report(name, root, found.counts, **vars(findings))
    told = {*found.empty, *found.broken_links, *found.unreadable, *found.not_pictures}
    bad = listing.damaged(root, [path for path in found.pictures or () if path not in told])
    unread = [one.path for one in bad if not one.truncated]
    findings.problems += _counted(unread, "picture", "that cannot be decoded; download again")
    findings.differences += _counted(
        [one.path for one in bad if one.truncated],
        "picture",
        "cut off, read with grey where the data ends; download again unless published so",
    )
    return Report(name, root, found.counts, **vars(findings), decoded=True, damaged=bad)


def judge(name: str, counts: Counts) -> Report:
    """The report on ``counts`` (environment -> class -> pictures, both in order of position).

    Touches no disk. A ``name`` that is no benchmark's has no expectations to meet.
    """
    return Report(name, None, counts, **vars(_compared(name, counts)))


def command(name: str, root: Path | None) -> str:
    """The command line that looks at a data set again."""
    known = benchmarks.BENCHMARKS.get(name)
    if root is None or (known is not None and known.folder == root.name):
        place = "" if root is None else f" --data_dir {shlex.quote(str(root.parent))}"
        return f"carft data verify {name}{place}"
    return f"carft data verify {shlex.quote(str(root))}"


def _folder(name: str, data_dir: Path | None) -> Path:
    """Where the pictures of a benchmark are."""
    folder = benchmarks.get(name).folder
    if not folder:
        return emoji.unpacked()
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder that has {folder!r} in it")
    root = data_dir / folder
    if os.path.isdir(root):
        return root
    try:
        beside = listed(sorted(os.listdir(data_dir)), 12) or "nothing in it"
    except OSError as error:
        raise CarftError(f"--data_dir {data_dir} cannot be read: {error.strerror}") from error
    raise CarftError(
        f"{name} should be in the folder {root}, but {data_dir} has {beside}. Rename or unpack "
        "what is there, or give another --data_dir"
    )


def _compared(name: str, counts: Counts) -> Findings:
    known = benchmarks.BENCHMARKS.get(name)
    if known is not None:
        return comparison.with_known(known, counts)
    return comparison.with_each_other(counts)


def _hint(found: listing.Listing, findings: Findings) -> None:
    """What a path may have been meant for: environments one level deeper, or a benchmark."""
    classes = [f"{e}/{name}" for e, inside in found.counts.items() for name in inside]
    folders = {tuple(found.below.get(one, ())) for one in classes}
    if len(folders) == 1 and len(names := folders.pop()) > 1:
        deeper = " or ".join(shlex.quote(str(found.root / e)) for e in found.counts)
        findings.notes.insert(
            0,
            f"no class folder has a picture of its own, and each has the folders {listed(names)}. "
            f"If those are the classes, give {deeper}",
        )
    root = found.root.resolve()
    for known in benchmarks.BENCHMARKS.values():
        if known.folder == root.name:
            findings.notes.append(
                f"to compare with what is known of {known.name}: {command(known.name, root)}"
            )


def _counted(paths: Sequence[str], noun: str, rest: str) -> list[str]:
    return [f"{text.counted(len(paths), noun)} {rest}: {listed(paths)}"] if paths else []
