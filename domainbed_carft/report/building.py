"""What ``carft report`` does: from folders of records to the page and its figures."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import faults
from domainbed_carft.jobs.records import Run
from domainbed_carft.report import missing, repeating, sections, writing
from domainbed_carft.report.content import Content, Section
from domainbed_carft.report.figures import style
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import document, labels, paired, published, selection, tables
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Table
from domainbed_carft.text import counted, inflected

PAIR = ("CARFT", "CLIPFineTune")


class Wanted(NamedTuple):
    """What is asked for; see ``commands``. ``examples`` is None for no pictures."""

    folders: Sequence[Path]
    select: str | None = None
    ignored: Sequence[str] = ()
    pair: Sequence[str] | None = None
    examples: int | None = 4
    data_dir: str | None = None
    processes: int = 1


def run(arguments: argparse.Namespace) -> None:
    """``carft report``."""
    if arguments.n_examples < 1:
        raise CarftError(
            f"--n_examples is {arguments.n_examples}, expected at least 1; --no-examples for none"
        )
    wanted = Wanted(
        arguments.folders, arguments.select, arguments.ignore, arguments.examples,
        None if arguments.no_examples else arguments.n_examples, arguments.data_dir,
    )  # fmt: skip
    writing.require_place(arguments.output)  # before anything takes time
    collection, content = build(wanted)
    index = writing.write(arguments.output, content)
    for line in faults.lines(collection.faults):
        print(line, file=sys.stderr)
    for text in _lacking(content):
        print(text, file=sys.stderr)
    print(f"Report: {index}")


def build(wanted: Wanted) -> tuple[Collection, Content]:
    """Read everything and say what the page says.

    Raises CarftError as ``collecting.gather`` does, for a method of selection that there are no
    jobs for, and for algorithms in ``pair`` that no job is of.
    """
    collection = collecting.gather(wanted.folders, None, wanted.ignored, wanted.select)
    method = _method(collection, wanted.select)
    runs = [run for group in collection.groups for run in group.runs]
    algorithms = labels.algorithms(run.algorithm for run in runs)
    pair = _pair(algorithms, wanted.pair, method)
    built = [tables.build(group, collection.methods) for group in collection.groups]
    looks = style.looks(algorithms)
    shown = sections.build(collection.groups, built, method, looks, wanted.processes)
    shown = _with_examples(shown, collection.groups, built, method, pair, wanted)
    return collection, _content(wanted, collection, built, method, shown, pair)


def _method(collection: Collection, asked: str | None) -> str:
    if asked is None:
        return collection.methods[0]
    selection.require_jobs(asked, collection.methods)
    return asked


def _pair(
    algorithms: Sequence[str], asked: Sequence[str] | None, method: str
) -> Sequence[str] | None:
    """The two algorithms to compare, None if there are not both of ours and none were asked for."""
    if asked is None:
        return PAIR if set(PAIR) <= set(algorithms) else None
    if method == selection.IN_DOMAIN:
        raise CarftError(
            f"--examples {' '.join(asked)}: pictures are of environments left out, and the jobs of "
            f"--select {method} left none out; expected another method, or no --examples"
        )
    unknown = [name for name in asked if name not in algorithms]
    if unknown or asked[0] == asked[1]:
        problem = f"no job is of {', '.join(unknown)}" if unknown else "they are the same"
        raise CarftError(
            f"--examples {' '.join(asked)}: {problem}; expected two of {', '.join(algorithms)}"
        )
    return asked


def _content(
    wanted: Wanted, collection: Collection, built: Sequence[Sequence[Table]], method: str,
    shown: Sequence[Section], pair: Sequence[str] | None,
) -> Content:  # fmt: skip
    flat = [table for group in built for table in group]
    runs = [run for group in collection.groups for run in group.runs]
    told = [table for table in flat if missing.has_values(table)]
    averages = [document.grid(table) for table in told if table.averages]
    several = len({run.dataset for run in runs}) > 1
    differences = _differences(collection.groups, method, pair)
    beside, overview = _published(wanted, collection, built, method)
    lacking = missing.listed(flat, collection.optional)
    cells = sum(t.size for t in flat if t.method == method)
    return Content(
        _title(runs),
        selection.METHODS[method].title,
        _facts(collection, method),
        [_finding(one, pair) for one in differences if pair],
        shown,
        averages if several else [],
        paired.grid(differences, *pair) if pair and differences else None,
        beside,
        overview,
        lacking,
        f"All {cells} cells of the tables by {selection.METHODS[method].title} are complete."
        if not any(t.incomplete for t in flat if t.method == method)
        else "",
        list(faults.lines(collection.faults)),
        collecting.notes(collection),
        {
            "tables": document.CAPTION,
            "paired": [paired.CAPTION],
            "published": published.CAPTION,
        },
        repeating.collect(wanted.folders, runs, _command(wanted)),
    )


def _title(runs: Sequence[Run]) -> str:
    names = list(labels.labels(runs))
    left_out = "one domain" if any(run.test_envs for run in runs) else "nothing"
    return f"{' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}: {left_out} left out"


def _facts(collection: Collection, method: str) -> list[tuple[str, str]]:
    runs = [run for group in collection.groups for run in group.runs]
    numbers = [
        (len({run.dataset for run in runs}), "data set"),
        (len({run.algorithm for run in runs}), "algorithm"),
        (len({run.trial for run in runs}), "trial"),
        (collection.jobs, "job"),
        (collection.records, "record"),
    ]
    return [(f"{count:,}", inflected(count, word)) for count, word in numbers]


def _differences(
    groups: Sequence[Group], method: str, pair: Sequence[str] | None
) -> list[paired.Difference]:
    if pair is None or method == selection.IN_DOMAIN:
        return []
    try:
        return paired.compare(groups, [method], *pair)
    except CarftError:  # they share no trial
        return []


def _finding(one: paired.Difference, pair: Sequence[str]) -> str:
    """A sentence on the one thing that a reader wants to know first."""
    a, b = pair
    word = "above" if one.mean >= 0 else "below"
    text = (
        f"{a} is {abs(one.mean):.1f} points {word} {b} on the environments left out: the mean over "
        f"{counted(one.pairs, 'pair')} of (environment, trial), of which "
        f"{counted(one.wins, 'is', 'are')} won, {one.losses} lost"
        + (f" and {one.ties} equal" if one.ties else "")
    )
    if one.low is not None and one.high is not None:
        text += f"; {paired.LEVEL}% interval {one.low:+.1f} to {one.high:+.1f}"
    if count := len(one.incomplete):
        lack = counted(count, "pair lacks", "pairs lack")
        text += f"; {lack} something, which stands at the paired comparison"
    return f"{one.setting}: {text}." if one.setting else f"{text}."


def _published(
    wanted: Wanted, collection: Collection, built: Sequence[Sequence[Table]], method: str
) -> tuple[list[document.Grid], document.Grid | None]:
    """Ours beside the published figures, and all of these; nothing where none are of our data."""
    known = {figure.dataset for figure in published.figures()}
    grids = []
    for group, own in zip(collection.groups, built, strict=True):
        if known.intersection(run.dataset for run in group.runs):
            found, remarks = published.compare(group, own)
            grids.append(published.grid([f for f in found if f.selection == method], remarks))
    return grids, published.overview(collection.compare_with) if grids else None


def _command(wanted: Wanted) -> str:
    words = ["carft", "report", *map(str, wanted.folders)]
    words += ["--select", wanted.select] if wanted.select else []
    words += ["--ignore", ",".join(wanted.ignored)] if wanted.ignored else []
    words += ["--examples", *wanted.pair] if wanted.pair else []
    words += ["--no-examples"] if wanted.examples is None else []
    words += ["--n_examples", str(wanted.examples)] if wanted.examples not in (None, 4) else []
    words += ["--data_dir", wanted.data_dir] if wanted.data_dir else []
    return shlex.join(words)


def _with_examples(
    shown: Sequence[Section], groups: Sequence[Group], built: Sequence[Sequence[Table]],
    method: str, pair: Sequence[str] | None, wanted: Wanted,
) -> list[Section]:  # fmt: skip
    """Where jobs leave one environment out, its pictures; the only part that loads torch."""
    if wanted.examples is None or pair is None or method == selection.IN_DOMAIN:
        return list(shown)
    from domainbed_carft.report import examples

    places = [
        (group, dataset)
        for group, own in zip(groups, built, strict=True)
        for dataset in sections.datasets(own, method)
    ]
    return [
        section._replace(
            examples=examples.of_dataset(
                group, method, dataset, pair, wanted.examples, wanted.data_dir
            )
        )
        for section, (group, dataset) in zip(shown, places, strict=True)
    ]


def _lacking(content: Content) -> Iterator[str]:
    if count := sum(one.counts for one in content.missing):
        are = inflected(count, "is", "are")
        yield f"{counted(count, 'kind')} of jobs {are} missing, see the page."
    drawn = writing.figures(content)
    if boxes := sorted(frozenset().union(*(figure.boxes for figure in drawn))):
        these = ", ".join(boxes[:10]) + ", ..." * (len(boxes) > 10)
        yield f"The figures' font lacks {these}: boxes in their PNGs; their SVGs have them as text."
    if crowded := [figure.name for figure in drawn if figure.crowded]:
        yield f"Names leave too little room in {counted(len(crowded), 'figure')}, as {crowded[0]}."
