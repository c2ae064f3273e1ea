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
from domainbed_carft.text import counted

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
                f"the environments are one level too deep, in the folder {name!r}: move its "
                f"{len(inside)} folders up one level and remove it"
            )
            return findings
    place = _places(benchmark, list(counts))
    _environments(benchmark, list(counts), place, findings)
    found = {name: counts[name] for name in place}
    _classes(found, benchmark.classes, findings)
    _editions(benchmark, {place[name]: classes for name, classes in found.items()}, findings)
    return findings


def with_each_other(counts: Counts) -> Findings:
    """What can be wrong with data of which nothing is known."""
    findings = Findings()
    stray = [name for name in counts if STRAY.match(name)]
    findings.problems += [_stray(name, list(counts)) for name in stray]
    inside = {name: classes for name, classes in counts.items() if name not in stray}
    if not inside:
        findings.problems.append(
            "there are no environments; expected the folder whose sub-folders they are"
        )
        return findings
    if len(inside) == 1:
        only = next(iter(inside))
        findings.notes.append(f"{only!r} is the only environment, so none can be left out")
    _classes(inside, None, findings)
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
        found = f"{len(names)} sub-folders: {listed(names, 8)}" if names else "no sub-folders"
        findings.problems.append(
            f"no environment {listed(missing)} ({found}); expected {listed(folders, 8)}"
        )
    findings.problems += [_stray(name, names) for name in names if name not in place]
    renamed = {name: folder for name, folder in place.items() if name != folder}
    said = ", ".join(f"{name!r} to {folder!r}" for name, folder in renamed.items())
    expected = [folder for folder in folders if folder not in missing]
    if list(place.values()) != expected:
        findings.problems.append(
            f"environments are read in the order {listed(place, 8)}, expected "
            f"{listed(expected, 8)}: a test environment's index would mean another one"
            f"{f'; rename {said}' if renamed else ''}"
        )
    elif renamed:
        findings.differences.append(
            f"environments have other names, though in the same order: rename {said}"
        )


def _stray(name: str, names: Sequence[str]) -> str:
    return (
        f"the folder {name!r} would be read as environment {names.index(name)} and move the index "
        "of those after it; move it out of the data folder"
    )


def _classes(counts: Counts, known: Sequence[str] | None, findings: Findings) -> None:
    """The class folders of all environments, which must be the same, and in the known order."""
    split = [name for name, found in counts.items() if found and _is_split(found)]
    findings.problems += [
        f"environment {name!r} has the sub-splits {listed(counts[name])} where its classes "
        "should be; merge them into one folder a class, without a second copy of any picture"
        for name in split
    ]
    lists = {name: tuple(found) for name, found in counts.items() if name not in split}
    if not lists:
        return
    usual = Counter(lists.values()).most_common(1)[0][0]
    if known is not None and tuple(known) in lists.values():
        usual = tuple(known)
    model = next(name for name, found in lists.items() if found == usual)
    if known is not None and usual != tuple(known):
        if list(map(_plain, usual)) == list(map(_plain, known)):
            renamed = [f"{f!r} for {k!r}" for f, k in zip(usual, known) if f != k]
            findings.differences.append(
                f"{len(renamed)} class folders have other names, though in the same order: "
                f"{', '.join(renamed[:5])}"
            )
        else:
            findings.problems.append(_unlike(model, usual, known, "the known ones"))
    elif len(usual) < 2:
        findings.problems.append(
            f"environment {model!r} has {counted(len(usual), 'class folder')}, expected at least "
            "two; the layout is environment/class/picture"
        )
    findings.problems += [
        _unlike(name, found, usual, f"those of {model!r}")
        for name, found in lists.items()
        if found != usual
    ]
    for name in lists:
        empty = [label for label, pictures in counts[name].items() if not pictures]
        if empty:
            findings.problems.append(
                f"environment {name!r} has no picture in {listed(empty)}, which ends a job when "
                "it starts; get the pictures, or remove the class everywhere"
            )


def _is_split(found: Iterable[str]) -> bool:
    return SUB_SPLITS.issuperset(name.lower() for name in found)


def _unlike(name: str, found: Sequence[str], expected: Sequence[str], source: str) -> str:
    """How the class folders of an environment are not as expected, and which label that moves."""
    missing = [one for one in expected if one not in found]
    extra = [one for one in found if one not in expected]
    parts = [f"it lacks {listed(missing)}"] * bool(missing)
    parts += [f"it has {listed(extra)} besides"] * bool(extra)
    moved = ""
    for label, one in enumerate(found):
        if one in expected and expected.index(one) != label:
            moved = f", so that {one!r} gets label {label} in place of {expected.index(one)}"
            break
    return (
        f"environment {name!r} has other class folders than {source}: "
        f"{' and '.join(parts) or 'their order is another'}{moved}; make them the same"
    )


def _editions(benchmark: Benchmark, found: Counts, findings: Findings) -> None:
    """``found`` has the names that are known."""
    totals = {name: sum(classes.values()) for name, classes in found.items()}

    def distance(edition: Edition) -> int:
        return sum(abs(total - edition.counts[name]) for name, total in totals.items())

    edition = min(benchmark.editions, key=distance)
    different = [
        difference
        for name, classes in found.items()
        if (difference := _other_counts(name, classes, edition))
    ]
    findings.differences += different
    if different:
        findings.notes.append(f"source of the known counts: {benchmark.certainty}")
    elif len(found) == len(benchmark.environments):
        findings.edition = edition.name
        if edition is not benchmark.editions[0]:
            findings.notes.append(
                f"these are the {edition.total:,} pictures {edition.name}; the edition "
                f"{benchmark.editions[0].name} has {benchmark.editions[0].total:,}. Compare only "
                "with results on the same"
            )


def _other_counts(name: str, classes: Mapping[str, int], edition: Edition) -> str | None:
    total, known = sum(classes.values()), edition.by_class.get(name, {})
    plain = {_plain(label): count for label, count in classes.items()}
    others = [
        f"{label!r} {plain[_plain(label)]:,} in place of {count:,}"
        for label, count in known.items()
        if plain.get(_plain(label), count) != count
    ]
    if total == edition.counts[name] and not others:
        return None
    more = f" and {len(others) - 5} more classes" if len(others) > 5 else ""
    return (
        f"environment {name!r} has {total:,} pictures, {edition.counts[name]:,} in the edition "
        f"{edition.name} ({total - edition.counts[name]:+,})"
        + (f": {', '.join(others[:5])}{more}" if others else "")
    )
