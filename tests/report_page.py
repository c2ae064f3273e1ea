"""A report, its page as a browser reads it, and records to make one of."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import collect_sweeps
import pandas as pd
import pytest

from domainbed_carft import cli
from domainbed_carft.report import evaluation_plots, plots
from domainbed_carft.report.plots import Figure, data_as_csv

VOID = {"meta", "link", "img", "source", "br", "input", "wbr"}
TABLE = "PACS; training-domain validation set"
HEADINGS = ("h1", "h2", "h3", "h4", "h5")
OURS = ("CLIPZeroShot", "CLIPFineTune", "CARFT")


class Page(HTMLParser):
    """``tables``: caption -> rows of texts; ``elements``: (tag, attributes) in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._words = ""
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td", "caption", *HEADINGS):
            self._words = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        text = " ".join(self._words.split())
        if tag == "caption":  # before the rows
            self.tables.setdefault(text, self._rows)
        elif tag in ("th", "td"):
            self._rows[-1].append(text)
        elif tag in HEADINGS:
            self.headings.append((int(tag[1]), text))

    def handle_data(self, data: str) -> None:
        self._words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def leave_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Figures with their names and words, and nothing on them: drawing takes most of the time."""

    def save_undrawn(canvas: object, title: str, name: str, alt: str, data: pd.DataFrame) -> Figure:
        svg = '<svg viewBox="0 0 288 200"></svg>'
        return Figure(title, name, alt, svg, b"an image", data_as_csv(data))

    for module in (plots, evaluation_plots):
        patch.setattr(module, "save_figure", save_undrawn)


def report(sweep: Path, output: Path, *words: str) -> int:
    """The exit status of ``carft report`` without images."""
    return cli.main(["report", str(sweep), "-o", str(output), "--n-examples", "0", *words])


def read(folder: Path) -> Page:
    return Page((Path(folder) / "index.html").read_text(encoding="utf-8"))


def report_and_read(sweep: Path, *words: str) -> Page:
    """The page of a report that is written beside the sweep."""
    output = sweep.parent / "report"
    assert report(sweep, output, *words) == 0
    return read(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def drift(draw: random.Random) -> dict[str, float]:
    """What our algorithms' records measure of the distance from the original."""
    return {"loss_kl": draw.random(), "context_agreement": draw.random()}


def write_ours(
    folder: Path, algorithms: Sequence[str] = OURS, trials: int = 2, dataset: str = "PACS"
) -> None:
    """A sweep of our algorithms, whose records have what they measure of the drift."""
    draw = random.Random(0)
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
            collect_sweeps.change_records(job, lambda record: record | drift(draw))


def write_incomplete(folder: Path) -> Path:
    """Our algorithms on PACS, complete but for one job."""
    write_ours(folder)
    shutil.rmtree(folder / "PACS-CLIPFineTune-1-1")
    return folder
