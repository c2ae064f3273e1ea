"""Counts that were found, against what is known of a benchmark, or against each other.

DomainBed goes by position: environment i is the i-th sub-folder, label k the k-th class folder. So
what shifts a position is a problem, and another name at the same position is only a difference.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from domainbed_carft.data.benchmarks import Benchmark, Edition

Counts = Mapping[str, Mapping[str, int]]  # environment -> class -> pictures, in order of position

SUB_SPLITS = {"train", "test", "val", "valid", "validation", "crossval", "trainval", "full"}
STRAY = re.compile(r"\.|__MACOSX$|eccv_18_")  # what unpackers and notebooks leave


@dataclass
class Findings:
    """Sentences: what gives wrong results or none, what is not as known, what is good to know.

    ``edition`` is the name of the edition whose counts these are, if it is one.
    """

    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    edition: str | None = None


def with_known(benchmark: Benchmark, counts: Counts) -> Findings:
    """Environments, classes and numbers against those of ``benchmark``."""
    findings = Findings()
    for name, inside in counts.items():
        if len(_places(benchmark, list(inside))) == len(benchmark.environments):
            findings.problems.append(
                f"the environments are one level too deep, in the folder {name!r}: move the "
                f"{len(inside)} folders in it up one level and remove it"
            )
            return findings
    place = _places(benchmark, list(counts))
    _environments(benchmark, list(counts), place, findings)
    found = {place[name]: classes for name, classes in counts.items() if name in place}
    for name in place:
        _classes(name, list(counts[name]), benchmark.classes, "expected", findings)
    _one_writing(counts, findings)
    _without_pictures(counts, findings)
    _editions(benchmark, found, findings)
    return findings


def with_each_other(counts: Counts) -> Findings:
    """What can be wrong with data of which nothing is known."""
    findings = Findings()
    stray = [name for name in counts if STRAY.match(name)]
    for name in stray:
        findings.problems.append(_stray(name, list(counts)))
    names = [name for name in counts if name not in stray]
    if not names:
        findings.problems.append(
            "environments: no sub-folders; the path must be that of the folder which holds them"
        )
    if len(names) == 1:
        findings.notes.append(f"environments: only {names[0]!r}, so there is none to leave out")
    if names:
        lists = Counter(tuple(counts[name]) for name in names)
        usual = lists.most_common(1)[0][0]
        model = next(name for name in names if tuple(counts[name]) == usual)
        for name in names:
            _classes(name, list(counts[name]), usual, f"as in {model!r}", findings)
        _one_writing(counts, findings)
        _note_alike(usual, findings)
        if len(usual) < 2:
            findings.problems.append(
                f"class folders in {model!r}: {len(usual)}, expected at least two; the layout is "
                "environment/class/picture"
            )
    _without_pictures(counts, findings)
    return findings


def digest(counts: Counts) -> str:
    """Eight hex digits that tell counts apart by any environment, class or number in them."""
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:8]


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _plain(name: str) -> str:
    """What is left of a name that copies write as "Real World", "RealWorld" or "real_world"."""
    return re.sub(r"[\W_]", "", name.casefold())


def _places(benchmark: Benchmark, names: Sequence[str]) -> dict[str, str]:
    """Name that was found -> folder of the environment that it stands for."""
    place = {e.folder: e.folder for e in benchmark.environments if e.folder in names}
    for environment in benchmark.environments:
        if environment.folder not in place.values():
            forms = {_plain(form) for form in (environment.folder, *environment.also)}
            alike = [name for name in names if name not in place and _plain(name) in forms]
            if alike:
                place[alike[0]] = environment.folder
    return {name: place[name] for name in names if name in place}


def _environments(
    benchmark: Benchmark, names: Sequence[str], place: Mapping[str, str], findings: Findings
) -> None:
    folders = [e.folder for e in benchmark.environments]
    missing = [folder for folder in folders if folder not in place.values()]
    if missing:
        findings.problems.append(
            f"no environment {listed(missing)} ({_sub_folders(names)}); expected "
            f"{listed(folders, 8)}. Get what is missing, or rename its folder"
        )
    findings.problems += [_stray(name, names) for name in names if name not in place]
    renamed = {name: folder for name, folder in place.items() if name != folder}
    said = ", ".join(f"{name!r} to {folder!r}" for name, folder in renamed.items())
    expected = [folder for folder in folders if folder not in missing]
    if list(place.values()) != expected:
        findings.problems.append(
            f"environments are read in the order {listed(place, 8)}, which is another than "
            f"{listed(expected, 8)}, so that a test environment's index means something else than "
            f"in every paper{f'; rename {said}' if renamed else ''}"
        )
    elif renamed:
        findings.differences.append(
            f"environments have other names, though in the same order: rename {said}"
        )


def _sub_folders(names: Sequence[str]) -> str:
    return f"{len(names)} sub-folders: {listed(names, 8)}" if names else "no sub-folders"


def _stray(name: str, names: Sequence[str]) -> str:
    return (
        f"the folder {name!r} would be read as environment {names.index(name)} and move the index "
        "of those after it; move it out of the data folder"
    )


def _classes(
    environment: str,
    found: Sequence[str],
    expected: Sequence[str],
    source: str,
    findings: Findings,
) -> None:
    """``source`` says where ``expected`` is from."""
    if found and SUB_SPLITS.issuperset(name.lower() for name in found):
        findings.problems.append(
            f"environment {environment!r} has the sub-splits {listed(found)} where its classes "
            "should be; merge them into one folder a class, without a second copy of any picture"
        )
        return
    if list(found) == list(expected):
        return
    stands_for = _matched(found, expected)
    missing = [name for name in expected if name not in stands_for.values()]
    extra = [name for name in found if name not in stands_for]
    if missing or extra:
        parts = [f"lacks {listed(missing)}"] if missing else []
        parts += [f"has {listed(extra)} besides{_twice(extra, stands_for)}"] if extra else []
        findings.problems.append(
            f"environment {environment!r} has {len(found)} classes, {len(expected)} {source}: it "
            f"{' and '.join(parts)}{_shift(found, expected)}. Make its class folders those {source}"
        )
    elif [stands_for[name] for name in found] != list(expected):
        findings.problems.append(
            f"environment {environment!r} has its classes in another order than {source}"
            f"{_shift(found, expected)}. Name the class folders as {source}"
        )
    else:
        renamed = [f"{f!r} for {e!r}" for f, e in zip(found, expected) if f != e]
        findings.differences.append(
            f"environment {environment!r} writes {len(renamed)} classes differently, though in the "
            f"same order: {', '.join(renamed[:5])}"
        )


def _one_writing(counts: Counts, findings: Findings) -> None:
    """A class that two environments write differently has no one name, and ends a job."""
    first: dict[tuple[str, ...], str] = {}
    for name, classes in counts.items():
        model = first.setdefault(tuple(map(_plain, classes)), name)
        pairs = [f"{f!r} for {e!r}" for f, e in zip(classes, counts[model]) if f != e]
        if pairs:
            findings.problems.append(
                f"environment {name!r} writes {', '.join(pairs[:5])} as in {model!r}, which ends a "
                "job when it starts; rename the class folders, so that they are the same everywhere"
            )


def _matched(found: Sequence[str], expected: Sequence[str]) -> dict[str, str]:
    """Name that was found -> expected name: the same one, else one that is only written alike."""
    pairs = {name: name for name in found if name in expected}
    left: dict[str, list[str]] = {}
    for name in found:
        if name not in pairs:
            left.setdefault(_plain(name), []).append(name)
    for name in expected:
        alike = [] if name in pairs else left.get(_plain(name), [])
        if alike:
            pairs[alike.pop(0)] = name
    return pairs


def _twice(extra: Sequence[str], stands_for: Mapping[str, str]) -> str:
    forms = {_plain(name): name for name in stands_for}
    same = [f"{n!r} and {forms[_plain(n)]!r}" for n in extra if _plain(n) in forms]
    return f" (one class twice: {', '.join(same)}; merge them)" if same else ""


def _note_alike(names: Sequence[str], findings: Findings) -> None:
    forms = Counter(name.casefold() for name in names)
    alike = [name for name in names if forms[name.casefold()] > 1]
    if alike:
        findings.notes.append(
            f"class folders that differ only in case are classes of their own: {listed(alike)}; "
            "merge them if they are the same"
        )


def _shift(found: Sequence[str], expected: Sequence[str]) -> str:
    """An example of a label that means something else, if there is one."""
    for label, name in enumerate(found):
        if name in expected and expected.index(name) != label:
            return f", so that {name!r} gets label {label} in place of {expected.index(name)}"
    return ""


def _without_pictures(counts: Counts, findings: Findings) -> None:
    for environment, classes in counts.items():
        empty = [name for name, pictures in classes.items() if not pictures]
        if empty:
            findings.problems.append(
                f"environment {environment!r} has no picture in {listed(empty)}, which ends a job "
                "when it starts; get the pictures, or remove the class everywhere"
            )


def _editions(benchmark: Benchmark, found: Counts, findings: Findings) -> None:
    """``found`` has the names that are known."""
    totals = {name: sum(classes.values()) for name, classes in found.items()}

    def distance(edition: Edition) -> int:
        return sum(abs(total - edition.counts[name]) for name, total in totals.items())

    edition = min(benchmark.editions, key=distance)
    unlike = [
        difference
        for name, classes in found.items()
        if (difference := _unlike(name, classes, edition))
    ]
    findings.differences += unlike
    if not unlike and len(found) == len(benchmark.environments):
        findings.edition = edition.name
        if edition is not benchmark.editions[0]:
            findings.notes.append(
                f"these are the {edition.total:,} pictures {edition.name}; the edition "
                f"{benchmark.editions[0].name} has {benchmark.editions[0].total:,}. Compare only "
                "with results on the same"
            )
    elif unlike:
        findings.notes.append(f"how the known counts are known: {benchmark.certainty}")


def _unlike(name: str, classes: Mapping[str, int], edition: Edition) -> str | None:
    total, known = sum(classes.values()), edition.by_class.get(name, {})
    by_form = {_plain(n): count for n, count in classes.items()}
    others = [
        f"{n!r} {by_form[_plain(n)]:,} in place of {count:,}"
        for n, count in known.items()
        if by_form.get(_plain(n), count) != count
    ]
    if total == edition.counts[name] and not others:
        return None
    more = f" and {len(others) - 5} classes more" if len(others) > 5 else ""
    return (
        f"environment {name!r} has {total:,} pictures, {edition.counts[name]:,} in the edition "
        f"{edition.name} ({total - edition.counts[name]:+,})"
        + (f": {', '.join(others[:5])}{more}" if others else "")
    )
