"""Run the demo: train an included sweep on this machine, print a table, and write a report."""

from __future__ import annotations

import textwrap
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.escaping import print_lines
from domainbed_carft.report import page
from domainbed_carft.report.sections import Section
from domainbed_carft.results import collection, comparisons, demo_table, formats
from domainbed_carft.results.collection import Group
from domainbed_carft.results.method_names import TRAINING_DOMAIN
from domainbed_carft.sweep import declaration_file, launch
from domainbed_carft.sweep.declaration import Declaration, Seeds
from domainbed_carft.wording import quantity

ZERO_SHOT = "CLIPZeroShot"
DATA_DIR = "embedded"  # not read: the images are in the package


def run(output: Path, trials: int | None = None, declared: str | Path = "demo") -> None:
    """Train a sweep of EmojiStyles, and compare its results with the recorded ones.

    Args:
        output: folder for jobs, table and report; jobs that were done or begun there are resumed.
        trials: number of trials; None keeps the declared number.
        declared: a sweep file, or the name of an included sweep.

    Raises:
        CarftError: the sweep could not be finished.
    """
    sweep_folder = output / "sweep"
    declaration = _load_declaration(declared, trials)
    _train(declaration, output)

    group = _find_group(declaration, sweep_folder)
    accuracies = comparisons.accuracies_by_row(group.select(TRAINING_DOMAIN))
    in_order = {row: accuracies[row] for row in group.order_rows(accuracies)}
    (dataset,) = declaration.datasets
    recorded = demo_table.recorded_accuracies(dataset)
    grid = demo_table.grid(in_order, recorded, group.environments[dataset])
    conclusion = demo_table.conclusion(in_order, recorded)

    table = formats.as_text([grid], [demo_table.NOTE])
    opening = Section(
        id="demo",
        title="This run and the recorded runs",
        table=grid,
        parts=[],
        findings=[conclusion, demo_table.NOTE],
    )
    note = textwrap.fill(conclusion, formats.TEXT_WIDTH)
    _report(output, sweep_folder, table, f"{note}\n", opening)


def _find_group(declaration: Declaration, sweep_folder: Path) -> Group:
    """Find the runs of the declared jobs; the folder can also contain runs of an earlier demo."""
    names = {job.folder.name for job in declaration.jobs(DATA_DIR, sweep_folder)}
    groups = collection.gather([sweep_folder]).groups
    return next(
        group for group in groups if any(run.job.folder.name in names for run in group.runs)
    )


def _load_declaration(declared: str | Path, n_trials: int | None) -> Declaration:
    declaration = declaration_file.load(declared)
    if n_trials is None:
        return declaration
    trials = Seeds.model_validate({"from": declaration.trial_seeds[0], "n": n_trials})
    return declaration.model_copy(update={"trials": trials})


def _train(declaration: Declaration, output: Path) -> None:
    """Run all jobs of the sweep. Raises CarftError if a job is not done at the end."""
    trained_cells = [cell for cell in declaration.cells() if cell.algorithm != ZERO_SHOT]
    (dataset,) = declaration.datasets
    print(f"{dataset}, each drawing style held out in turn")
    if len(trained_cells) < len(declaration.algorithms):
        print(f"{ZERO_SHOT}: evaluated without training")
    names = ", ".join(cell.algorithm for cell in trained_cells)
    print(f"{names}: trained for {trained_cells[0].steps} steps")
    page.require_report_folder(output / "report")

    sweep_folder = output / "sweep"
    # Training in-splits are two thirds of the evaluation, and selection does not use them.
    plan = launch.plan(declaration, DATA_DIR, sweep_folder)
    unfinished_jobs = launch.run_plan(plan)
    if unfinished_jobs:
        first = unfinished_jobs[0]
        raise CarftError(
            f"{quantity(len(unfinished_jobs), 'job is', 'jobs are')} not done, the first in "
            f"{first.job.folder}: {first.detail}. Fix the cause, run `carft sweep retry "
            f"{sweep_folder}` if jobs failed, then rerun this command"
        )


def _report(
    output: Path, sweep_folder: Path, table: str, note: str, opening: Section | None = None
) -> None:
    """Write the table and the report, and print the table and the paths."""
    files.save_text(output / "results.txt", table)
    print(f"{table}\n{note}")

    report = page.write_report([sweep_folder], output / "report", opening=opening).index
    print_lines(
        f"Table:    {output / 'results.txt'}",
        f"Report:   {report} (open it in a browser)",
        f"Records:  {sweep_folder}/*/results.jsonl, next to out.txt, err.txt and model.pkl",
    )
