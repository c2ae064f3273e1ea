"""Helpers that write records, make a report of them, and parse its page."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.report import evaluation_plots, plots
from domainbed_carft.report.plots import Figure, write_csv

VOID = {"meta", "link", "img", "source", "br", "input", "wbr"}
TABLE = "PACS; training-domain validation set"
ALGORITHMS = ("CLIPZeroShot", "CLIPFineTune", "CARFT")


class Page(HTMLParser):
    """A parsed page, which must be well-formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []  # tags and attributes
        self.tables: dict[str, list[list[str]]] = {}  # caption -> rows of texts
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._words = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td", "caption"):
            self._words = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        text = " ".join(self._words.split())
        if tag == "caption":  # comes before the rows
            self.tables.setdefault(text, self._rows)
        elif tag in ("th", "td"):
            self._rows[-1].append(text)

    def handle_data(self, data: str) -> None:
        self._words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def skip_drawing(patch: pytest.MonkeyPatch) -> None:
    """Make empty figures with names and texts, because drawing takes most of the time."""

    def save_empty(
        canvas: object,
        title: str,
        name: str,
        alt: str,
        header: Sequence[str],
        rows: Iterable[Sequence[object]],
    ) -> Figure:
        svg = '<svg viewBox="0 0 288 200"></svg>'
        return Figure(title, name, alt, svg, b"an image", write_csv(header, rows))

    for module in (plots, evaluation_plots):
        patch.setattr(module, "save_figure", save_empty)


def report(sweep: Path, output: Path, *words: str) -> int:
    """Run ``carft report``, and return its exit status."""
    return cli.main(["report", str(sweep), "-o", str(output), *words])


def read(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def report_and_read(sweep: Path, *words: str) -> Page:
    """Write a report next to the sweep, and return its page."""
    output = sweep.parent / "report"
    assert report(sweep, output, *words) == 0
    return read(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def add_drift(job: Path, generator: random.Random) -> None:
    """Add random drifts of the context distribution to a job's records."""
    collect_sweeps.change_records(
        job,
        lambda record: (
            record | {name: generator.random() for name in ("loss_kl", "context_agreement")}
        ),
    )


def write_sweep(
    folder: Path, algorithms: Sequence[str] = ALGORITHMS, trials: int = 2, dataset: str = "PACS"
) -> None:
    """Write the records of a sweep with CLIP models, prompts and drifts."""
    generator = random.Random(0)
    recorded = {"clip_backbone": "ViT-B/16", "prompts_digest": "0123456789abcdef"}
    for algorithm, target, trial in itertools.product(algorithms, range(4), range(trials)):
        job = collect_sweeps.write_job(
            folder,
            f"{dataset}-{algorithm}-{target}-{trial}",
            algorithm=algorithm,
            dataset=dataset,
            test_envs=[target],
            trial_seed=trial,
            recorded=recorded,
        )
        if algorithm in ("CARFT", "CLIPFineTune"):
            add_drift(job, generator)


def write_incomplete(folder: Path) -> Path:
    """Write a sweep on PACS in which one job is missing."""
    write_sweep(folder)
    shutil.rmtree(folder / "PACS-CLIPFineTune-1-1")
    return folder
