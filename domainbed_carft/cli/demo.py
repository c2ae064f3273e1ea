"""The demos: a sweep that ``sweeps/`` declares, run on this machine, table and report."""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
from pathlib import Path

from domainbed_carft import launchers
from domainbed_carft.cli import runs
from domainbed_carft.errors import CarftError
from domainbed_carft.report import output_folder, page
from domainbed_carft.results import collection, formats, suites
from domainbed_carft.results.document import Document
from domainbed_carft.sweep import declaration_file, launch
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.text import counted

DATA_DIR = "embedded"  # not read: the pictures are in the package


def run(output: Path, trials: int | None = None, declared: str | Path = "demo") -> None:
    """Train, collect and report into ``output``; what was done or begun there before is not redone.

    ``declared`` is a sweep of EmojiStyles; ``trials`` replaces its number of trials.
    """
    _, folder = _trained(declared, trials, output, "with one environment left out")
    words = ["-m", "domainbed.scripts.collect_results", "--input_dir", str(folder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CarftError(f"{' '.join(words)} failed with {done.returncode}: {done.stderr[-1000:]}")
    note = (
        "Each cell: accuracy (%) on the environment that was left out, with the checkpoint chosen "
        "by the method named above the table.\nX: leave-one-domain-out cross-validation needs the "
        "jobs with two test environments, which the demo does not run.\n"
    )
    _report(output, folder, done.stdout, note)


def run_suite(output: Path, trials: int | None = None, declared: str | Path = "demo-suite") -> None:
    """The same, tested on the suite of the data set's name, also with WiSE-FT's weights between.

    ``declared`` is a sweep of one data set that has a suite without a data folder.
    """
    declaration, folder = _trained(declared, trials, output, "and tested on other styles")
    for job in declaration.jobs(DATA_DIR, folder):
        place = output / "suites" / f"{job.key.algorithm}-{job.key.trial}"
        place.mkdir(parents=True, exist_ok=True)
        where = (job.folder, "--suite", *declaration.datasets, "--workers", 0)
        _carft("evaluate", *where, "-o", place / "accuracies.txt")
        mixed = place / "wise-ft"
        if job.key.algorithm != "CLIPZeroShot" and not (mixed / "wise_ft.json").exists():
            with contextlib.redirect_stdout(io.StringIO()):
                alphas = (0, 0.25, 0.5, 0.75, 1)
                _carft("wise-ft", *where, "-o", mixed, "--save", "none", "--alphas", *alphas)
    rows = [row for group in collection.gather([folder]).groups for row in suites.scores(group)]
    (ends,) = suites.rows_by_table(row for row in rows if row.alpha in (None, 0.5))
    table = Document([suites.CAPTION], [suites.grid(ends)], {}, [])
    note = (
        "Of a single trial, differences of a few points may be chance: --trials 3 takes longer.\n"
    )
    _report(output, folder, formats.FORMATS["text"](table), note)


def _carft(*words: object) -> None:
    """A command of `carft`, in this process."""
    parser = argparse.ArgumentParser()
    runs.add_to(parser.add_subparsers())
    arguments = parser.parse_args([*map(str, words)])
    arguments.run(arguments)


def _trained(
    declared: str | Path, trials: int | None, output: Path, how: str
) -> tuple[Declaration, Path]:
    """The sweep and its folder, with all of its jobs done."""
    declaration = declaration_file.load(declared)
    if trials:
        declaration = declaration.model_copy(update={"trials": trials})
    (dataset,), folder = declaration.datasets, output / "sweep"
    steps = declaration.steps_of(dataset)
    print(f"{', '.join(declaration.algorithms)}: each trained {steps} steps on {dataset} {how}")
    output_folder.require_place(output / "report")
    pool = launchers.make("pool", {})
    # What no selection uses is two thirds of the evaluation.
    if left := launch.run(declaration, DATA_DIR, folder, pool, skip_training_in_splits=True):
        raise CarftError(
            f"{counted(len(left), 'job is', 'jobs are')} not done, the first in "
            f"{left[0].job.folder}: {left[0].detail}\nFix the cause, run `carft sweep retry "
            f"{folder}` if jobs failed, then rerun this command"
        )
    return declaration, folder


def _report(output: Path, folder: Path, table: str, note: str) -> None:
    (output / "results.txt").write_text(table, encoding="utf-8")
    print(f"{table}\n{note}")
    report = page.write_report([folder], output / "report").index
    print(f"Table:    {output / 'results.txt'}")
    print(f"Report:   {report} (open it in a browser)")
    print(f"Records:  {folder}/*/results.jsonl, next to out.txt, err.txt and model.pkl")
