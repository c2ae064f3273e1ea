"""The section of each data set: its tables and its figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from domainbed_carft.report import frames, missing
from domainbed_carft.report.content import Part, Section, Shown
from domainbed_carft.report.figures import bars, curves, drawn, robustness, style
from domainbed_carft.report.figures.drawn import Drawn
from domainbed_carft.results import document, published, selection
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Cell, Table

Looks = Mapping[str, style.Look]
# A function that draws, and what it draws from: other processes may do it.
Task = tuple[Callable[..., Drawn | None], tuple[Any, ...]]

_BAND = (
    "Lines are means over trials of the runs that were selected, bands the standard error; a "
    "single trial has none."
)
_ACCURACY = (
    "Out-of-domain is the accuracy on the in-split of the environment left out; in-domain the mean "
    f"over the out-splits of those trained on, augmented as DomainBed evaluates them. {_BAND}"
)
_ROBUSTNESS = (
    "Each mark is a run at the checkpoint that was selected; of several choices of hyperparameters "
    "the small pale marks were not selected. Higher at the same place from left to right is more "
    "robust. The dotted line is where both accuracies are equal."
)
_DRIFT = (
    "How far fine-tuning moves what the image encoder thinks of the context: the KL divergence of "
    "its context distribution from that of the original CLIP, and how often both take the same "
    "context for the most likely. Measured on the pictures of the training steps since the "
    f"checkpoint before, in each trial the mean over the environments left out. {_BAND}"
)

_LONGEST = 60  # letters of a part of a name; a file's may have 255 in all


class Names:
    """Names for files and places on the page, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of(self, *parts: str) -> str:
        """A name that file systems and addresses take."""
        plain = (re.sub(r"[^A-Za-z0-9.]+", "_", part).strip("_.") for part in parts)
        stem = "-".join(part[:_LONGEST] or "_" for part in plain)
        name, count = stem, 2
        while name.lower() in self._given:  # some file systems do not tell cases apart
            name, count = f"{stem}-{count}", count + 1
        self._given.add(name.lower())
        return name


class Sketch(NamedTuple):
    """A part whose figures, each with its title, are still to be drawn."""

    id: str
    title: str
    text: str
    tasks: Sequence[tuple[str, Task]]
    lacking: str


def build(
    groups: Sequence[Group], built: Sequence[Sequence[Table]], method: str, looks: Looks,
    processes: int = 1,
) -> list[Section]:  # fmt: skip
    """A section for each data set of each group that has runs the method can select from.

    ``built``: the tables of each group. Figures are drawn by as many ``processes``.
    """
    names = Names()
    found: list[tuple[Section, list[Sketch]]] = []
    for group, own in zip(groups, built, strict=True):
        found += _of_group(group, own, method, looks, names)
    tasks = [task for _, sketches in found for sketch in sketches for _, task in sketch.tasks]
    drawings = iter(drawn.all_of(tasks, processes))
    return [
        section._replace(parts=[_part(sketch, drawings) for sketch in sketches])
        for section, sketches in found
    ]


def _part(sketch: Sketch, drawings: Iterator[Drawn | None]) -> Part:
    pairs = [(title, next(drawings)) for title, _ in sketch.tasks]
    shown = [Shown(title, drawing) for title, drawing in pairs if drawing is not None]
    lacking = "" if shown else sketch.lacking
    return Part(sketch.id, sketch.title, sketch.text, shown, lacking)


def _of_group(
    group: Group, built: Sequence[Table], method: str, looks: Looks, names: Names
) -> Iterator[tuple[Section, list[Sketch]]]:
    outcomes = frames.outcomes(group.runs, method)
    checkpoints = frames.checkpoints(group.runs, method)
    mine = [table for table in built if table.method == method]
    own = {table.dataset: table for table in mine if not table.averages}
    averages = next((table for table in mine if table.averages), None)
    for dataset in datasets(built, method):
        table = own[dataset]
        others = [
            t for t in built if t.dataset == dataset and t.method != method and not t.averages
        ]
        identity = names.of("data", dataset)
        sketches = [
            _bars(identity, group, table, averages, looks, names),
            *_curves(
                identity, table, checkpoints[checkpoints["dataset"] == dataset],
                outcomes[outcomes["dataset"] == dataset], looks, names,
            ),
        ]  # fmt: skip
        section = Section(
            identity,
            "; ".join(filter(None, [dataset, group.title])),
            document.grid(table),
            best(table),
            [document.grid(other) for other in others if missing.has_values(other)],
            [],
            None,
        )
        yield section, sketches


def datasets(built: Sequence[Table], method: str) -> list[str]:
    """Those that a group has sections of, in their order; ``built``: its tables."""
    return [t.dataset for t in built if t.method == method and not t.averages]


def best(table: Table) -> list[list[bool]]:
    """Whether each cell of the table's grid, without the label, is the highest of its column."""
    columns = [[row.cells[place].mean for row in table.rows] for place in range(len(table.columns))]
    columns.append([row.average for row in table.rows])
    highest = [max((v for v in column if v is not None), default=None) for column in columns]
    # As printed: what reads the same is as good.
    return [
        [
            value is not None and top is not None and f"{value:.1f}" == f"{top:.1f}"
            for value, top in zip(values, highest)
        ]
        for values in zip(*columns)
    ]


def _bars(
    identity: str, group: Group, table: Table, averages: Table | None, looks: Looks, names: Names
) -> Sketch:
    cells: dict[str, Cell] = {}
    if averages is not None:
        place = list(averages.columns).index(table.dataset)
        cells = {row.algorithm: row.cells[place] for row in averages.rows}
    beside = _published(group, table.dataset)
    tasks: list[tuple[str, Task]] = []
    if missing.has_values(table):
        name = names.of(table.dataset, "accuracy")
        tasks = [(table.dataset, (bars.draw, (name, table, cells, beside, looks)))]
    text = "Bars are means over trials, with the standard error where there are several. " + (
        "Diamonds are published figures, of which there are averages only: CLIP ViT-B/16 in "
        "several protocols, see the sources below."
        if beside
        else f"There are no published figures for {table.dataset}."
    )
    left_out = table.method != selection.IN_DOMAIN
    title = "Accuracy on the environment left out" if left_out else "Accuracy on each environment"
    return Sketch(f"{identity}-bars", title, text, tasks, "No cell has a value.")


def _published(group: Group, dataset: str) -> dict[str, tuple[str, float]]:
    """Algorithm -> the one published method that its runs are instances of, and its figure."""
    known = {f.method: f.accuracy for f in published.figures() if f.dataset == dataset}
    methods: dict[str, set[str]] = {}
    for run in group.runs:
        if run.dataset == dataset:
            methods.setdefault(run.algorithm, set()).add(published.counterpart(run) or "")
    single = {algorithm: found.pop() for algorithm, found in methods.items() if len(found) == 1}
    return {a: (method, known[method]) for a, method in single.items() if method in known}


def _curves(
    identity: str, table: Table, checkpoints: pd.DataFrame, outcomes: pd.DataFrame, looks: Looks,
    names: Names,
) -> Iterator[Sketch]:  # fmt: skip
    dataset, values = table.dataset, ["in_domain", "out_of_domain"]
    unselected = "" if len(checkpoints) else _unselected(table.method)
    tasks: list[tuple[str, Task]] = []
    for title, what, rows in _places(table, checkpoints, values):
        name = names.of(dataset, "over_steps", title)
        tasks.append((title, (curves.draw, (name, what, rows, curves.ACCURACY, looks))))
    nothing = unselected or "No checkpoint was recorded."
    yield Sketch(f"{identity}-steps", "Accuracy over steps", _ACCURACY, tasks, nothing)
    tasks = []
    for title, what, rows in _places(table, outcomes, values):
        name = names.of(dataset, "robustness", title)
        tasks.append((title, (robustness.draw, (name, what, rows, looks))))
    nothing = unselected or "No run has left an environment out: nothing is out-of-domain."
    title = "In-domain against out-of-domain"
    yield Sketch(f"{identity}-robustness", title, _ROBUSTNESS, tasks, nothing)
    drift = frames.over_targets(checkpoints, frames.DRIFT)
    nothing_out = table.method == selection.IN_DOMAIN
    what = "nothing left out" if nothing_out else "mean over the environments left out"
    what = f"{dataset}, {what}"
    name = names.of(dataset, "context_drift")
    task = (curves.draw, (name, what, drift, curves.DRIFT, looks))
    nothing = unselected or (
        "No run has recorded it: of our algorithms CARFT does, and CLIPFineTune unless its hparam "
        "drift_every is 0."
    )
    title = "Drift of the context distribution"
    yield Sketch(f"{identity}-drift", title, _DRIFT, [(dataset, task)], nothing)


def _unselected(method: str) -> str:
    title = selection.METHODS[method].title
    return f"No run could be selected by {title}: what that lacks is said under What is missing."


def _places(
    table: Table, rows: pd.DataFrame, values: list[str]
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(title, the same in words, rows) of all environments together, then of each."""
    if rows.empty:
        return
    if (rows["target"] == frames.NOTHING).all():
        yield "nothing left out", f"{table.dataset}, nothing left out", rows
        return
    together = frames.over_targets(rows, values)
    if rows["target"].nunique() > 1 and not together.empty:
        what = f"{table.dataset}, mean over the environments left out"
        yield "mean over environments", what, together
    for target, label in enumerate(table.columns):
        mine = rows[rows["target"] == target]
        if not mine.empty:
            yield f"{label} left out", f"{table.dataset}, {label} left out", mine
