"""The sections of the page, one a data set and setting; what is missing in all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from domainbed_carft.jobs.records import Run
from domainbed_carft.report import figures, frames
from domainbed_carft.report.content import Part, Section, Wanted
from domainbed_carft.report.figures import Figure, Looks
from domainbed_carft.results import document, labels, selection
from domainbed_carft.results.document import Grid
from domainbed_carft.results.settings import Group
from domainbed_carft.results.tables import Table

Name = Callable[..., str]  # of a file or a place on the page: made of words, and given once

_BARS = "Bars are means over trials, with the standard error where there are several."
_PUBLISHED = (
    "Diamonds are published figures, of which there are averages only: CLIP ViT-B/16 in several "
    "protocols, see the sources below."
)
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
_NO_DRIFT = (
    "No run has recorded it: of our algorithms CARFT does, and CLIPFineTune unless its hparam "
    "drift_every is 0."
)


def build(
    groups: Sequence[Group], built: Sequence[Sequence[Table]], compared: Sequence[Any],
    method: str, pair: Sequence[str] | None, wanted: Wanted,
) -> list[Section]:  # fmt: skip
    """A section for each data set of each group that has jobs for the method.

    ``built``, ``compared``: of each group the tables and what ``published.compare`` returns.
    ``pair``: the algorithms that are compared picture by picture; only this loads torch.
    """
    looks = figures.looks(labels.algorithms(run.algorithm for g in groups for run in g.runs))
    given: set[str] = set()

    def name(*words: str) -> str:
        plain = (re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("_.")[:60] or "_" for word in words)
        stem = free = "-".join(plain)
        count = 1
        while free in given:
            count += 1
            free = f"{stem}-{count}"
        given.add(free)
        return free

    found = []
    for group, own, (beside, _) in zip(groups, built, compared, strict=True):
        averages = next((t for t in own if t.averages and t.method == method), None)
        for table in own:
            if table.averages or table.method != method:
                continue
            dataset, identity = table.dataset, name("data", table.dataset)
            runs = [run for run in group.runs if run.dataset == dataset]
            known = {
                one.algorithm: one.published.accuracy
                for one in beside
                if (one.dataset, one.selection) == (dataset, method)
            }
            shown = [*parts(identity, table, averages, runs, known, looks, name)]
            if pair and wanted.examples is not None and method != selection.IN_DOMAIN:
                from domainbed_carft.report import examples

                shown.append(examples.part(f"{identity}-examples", table, runs, pair, wanted))
            title = "; ".join(filter(None, [dataset, group.title]))
            others = [
                document.grid(other)
                for other in own
                if other.dataset == dataset and other.method != method and not other.averages
                if has_values(other)
            ]
            grid = document.grid(table)
            found.append(Section(identity, title, grid, best(table), others, shown))
    return found


def best(table: Table) -> list[list[bool]]:
    """Whether each cell of the table's grid, without the label, is the highest of its column."""
    means = [[*(cell.mean for cell in row.cells), row.average] for row in table.rows]
    printed = pd.DataFrame(means, dtype=float).round(1)  # what reads the same is as good
    return (printed == printed.max()).to_numpy().tolist()


def missing(built: Iterable[Table], optional: Container[str]) -> tuple[Grid, int]:
    """What cells of a data set lack, each said once; how many of that are not of ``optional``."""
    found: dict[tuple[str, str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for table in (table for table in built if not table.averages):
        where = "; ".join(filter(None, [table.dataset, table.setting]))
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                for text in cell.missing:
                    columns, methods = found.setdefault((where, row.algorithm, text), ({}, {}))
                    columns[column] = methods[table.method] = None
    rows = [
        [*key, ", ".join(columns), ", ".join(selection.METHODS[name].title for name in methods)]
        for key, (columns, methods) in found.items()
    ]
    gaps = sum(any(name not in optional for name in methods) for _, methods in found.values())
    header = ["Data set", "Algorithm", "What", "Environments", "Tables by"]
    return Grid("Jobs that cells lack", header, rows, []), gaps


def parts(
    identity: str, table: Table, averages: Table | None, runs: Sequence[Run],
    published: Mapping[str, float], looks: Looks, name: Name,
) -> Iterator[Part]:  # fmt: skip
    """Bars, curves, marks and drift; ``runs`` are those of the table's data set and setting.

    ``identity`` begins the parts' places on the page. ``averages``: the table that has the data
    set's in its columns. ``published``: algorithm -> published accuracy in percent.
    """
    method, dataset = selection.METHODS[table.method], table.dataset
    left_out = table.method != selection.IN_DOMAIN
    drawn: list[Figure | None] = []
    if has_values(table):
        drawn.append(figures.bars(name(dataset, "accuracy"), table, averages, published, looks))
    text = f"{_BARS} {_PUBLISHED if published else f'There are none published for {dataset}.'}"
    title = f"Accuracy on {'the environment left out' if left_out else 'each environment'}"
    yield _part(f"{identity}-bars", title, text, drawn, "No cell has a value.")

    checkpoints = frames.checkpoints(runs, table.method)
    lacking = f"No run could be selected by {method.title}: What is missing says why."
    lacking = "" if len(checkpoints) else lacking
    drawn = [
        figures.curves(place, name(dataset, "over_steps", place), rows, figures.ACCURACY, looks)
        for place, rows in _places(table, checkpoints)
    ]
    yield _part(f"{identity}-steps", "Accuracy over steps", _ACCURACY, drawn, lacking)

    drawn = [
        figures.marks(place, name(dataset, "robustness", place), rows, looks)
        for place, rows in _places(table, frames.outcomes(runs, table.method))
    ]
    nothing = lacking or "No run has left an environment out: nothing is out-of-domain."
    title = "In-domain against out-of-domain"
    yield _part(f"{identity}-robustness", title, _ROBUSTNESS, drawn, nothing)

    rows = frames.over_targets(checkpoints, frames.DRIFT)
    place = "mean over environments" if left_out else "nothing left out"
    drawn = [figures.curves(place, name(dataset, "context_drift"), rows, figures.DRIFT, looks)]
    title = "Drift of the context distribution"
    yield _part(f"{identity}-drift", title, _DRIFT, drawn, lacking or _NO_DRIFT)


def _part(
    identity: str, title: str, text: str, drawn: Sequence[Figure | None], nothing: str
) -> Part:
    found = [figure for figure in drawn if figure]
    return Part(identity, title, text if found else nothing, found)


def has_values(table: Table) -> bool:
    """Whether any cell has one."""
    return any(cell.mean is not None for row in table.rows for cell in row.cells)


def _places(table: Table, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """A title and the rows of all environments together, then of each."""
    if rows.empty:
        return
    if (rows["target"] == frames.NOTHING).all():
        yield "nothing left out", rows
        return
    together = frames.over_targets(rows, ["in_domain", "out_of_domain"])
    if rows["target"].nunique() > 1 and not together.empty:
        yield "mean over environments", together
    for target, label in enumerate(table.columns):
        mine = rows[rows["target"] == target]
        if not mine.empty:
            yield f"{label} left out", mine
