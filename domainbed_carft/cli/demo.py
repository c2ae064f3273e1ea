"""The demos: a sweep that ``sweeps/`` declares, run on this machine, table and report."""

from __future__ import annotations

import textwrap
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.cli import demo_table, run_texts
from domainbed_carft.errors import CarftError
from domainbed_carft.report import page
from domainbed_carft.report.sections import Section
from domainbed_carft.results import collection, comparisons, formats, suites
from domainbed_carft.results.collection import Group
from domainbed_carft.results.method_names import TRAINING_DOMAIN
from domainbed_carft.runs.evaluate import evaluate
from domainbed_carft.runs.saved import describe_choice, load_run
from domainbed_carft.runs.suites import SuiteEvaluation, append_record
from domainbed_carft.runs.wise_ft import WISE_FT_TABLE, wise_ft
from domainbed_carft.sweep import declaration_file, launch
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.text import quantity

DATA_DIR = "embedded"  # not read: the pictures are in the package
WISE_FT_ALPHAS = (0, 0.25, 0.5, 0.75, 1)
TABLE_ALPHA = 0.5  # of the row beside that of the run


def run(output: Path, trials: int | None = None, declared: str | Path = "demo") -> None:
    """Train, collect and report into ``output``, beside the packed records of the same jobs.

    What was done or begun there before is not redone. ``declared`` is a sweep of EmojiStyles;
    ``trials`` replaces its number of trials. Raises CarftError for a sweep that is not finished,
    with what to do.
    """
    sweep_folder = output / "sweep"
    declaration = _load_declaration(declared, trials)
    _train(declaration, output, "with one drawing style left out")

    group = _group_of(declaration, sweep_folder)
    accuracies = comparisons.accuracies_of(group.selected(TRAINING_DOMAIN))
    in_order = {row: accuracies[row] for row in group.ordered(accuracies)}
    (dataset,) = declaration.datasets
    packed = demo_table.packed_accuracies(dataset)
    grid = demo_table.grid(in_order, packed, group.environments[dataset])
    conclusion = demo_table.conclusion(in_order, packed)

    table = formats.as_text([grid], [demo_table.NOTE])
    opening = Section(
        id="demo",
        title="This run beside the packed records",
        table=grid,
        parts=[],
        findings=[conclusion, demo_table.NOTE],
    )
    note = textwrap.fill(conclusion, formats.TEXT_WIDTH)
    _report(output, sweep_folder, table, f"{note}\n", opening)


def _group_of(declaration: Declaration, sweep_folder: Path) -> Group:
    """The runs of the declared jobs; the folder may have an earlier demo's, too."""
    names = {job.folder.name for job in declaration.jobs(DATA_DIR, sweep_folder)}
    groups = collection.gather([sweep_folder]).groups
    return next(
        group for group in groups if any(run.job.folder.name in names for run in group.runs)
    )


def run_suite(output: Path, trials: int | None = None, declared: str | Path = "demo-suite") -> None:
    """Train and report into ``output``, tested on the suite of the data set's name.

    Also at WiSE-FT's weights between the original CLIP and each run; what was done or begun there
    before is not redone. ``declared`` is a sweep of one data set that has a suite without a data
    folder; ``trials`` replaces its number of trials.
    """
    declaration = _load_declaration(declared, trials)
    sweep_folder = output / "sweep"
    _train(declaration, output, "and tested on other styles")

    (suite,) = declaration.datasets
    for job in declaration.jobs(DATA_DIR, sweep_folder):
        job_output = output / "suites" / f"{job.key.algorithm}-{job.key.trial}"
        job_output.mkdir(parents=True, exist_ok=True)
        _evaluate_on_suite(job.folder, suite, job_output)

    table = _suite_table(sweep_folder)
    note = (
        "Of a single trial, differences of a few points may be chance: --trials 3 takes longer.\n"
    )
    _report(output, sweep_folder, table, note)


def _load_declaration(declared: str | Path, trials: int | None) -> Declaration:
    declaration = declaration_file.load(declared)
    if trials:
        declaration = declaration.model_copy(update={"trials": trials})
    return declaration


def _train(declaration: Declaration, output: Path, description: str) -> None:
    """Run all jobs of the sweep; CarftError if one is not done at the end."""
    (dataset,) = declaration.datasets
    steps = declaration.steps_of(dataset)
    algorithms = ", ".join(declaration.algorithms)
    print(f"{algorithms}: each trained {steps} steps on {dataset} {description}")
    page.require_place(output / "report")

    sweep_folder = output / "sweep"
    # No selection uses the training in-splits, which are two thirds of the evaluation.
    plan = launch.plan(declaration, DATA_DIR, sweep_folder)
    unfinished_jobs = launch.run_plan(plan)
    if unfinished_jobs:
        first = unfinished_jobs[0]
        raise CarftError(
            f"{quantity(len(unfinished_jobs), 'job is', 'jobs are')} not done, the first in "
            f"{first.job.folder}: {first.detail}\nFix the cause, run `carft sweep retry "
            f"{sweep_folder}` if jobs failed, then rerun this command"
        )


def _suite_table(sweep_folder: Path) -> str:
    """The accuracies of each run, and of WiSE-FT half way to it, as text."""
    groups = collection.gather([sweep_folder]).groups
    rows = [row for group in groups for row in suites.scores(group, warnings=[])]
    shown_rows = [row for row in rows if row.alpha in (None, TABLE_ALPHA)]
    (suite_rows,) = suites.rows_by_table(shown_rows)
    return formats.as_text([suites.grid(suite_rows)], [suites.caption()])


def _evaluate_on_suite(job_folder: Path, suite: str, output: Path) -> None:
    """Measure a job on the suite, also at WISE_FT_ALPHAS; the records stay in its folder."""
    run = load_run(job_folder)
    evaluation = evaluate(run, suite, workers=0)
    assert isinstance(evaluation, SuiteEvaluation)  # of a run on a suite
    choice = describe_choice(job_folder, None, run.path)
    text = run_texts.suite_text(evaluation)
    files.save_text(output / "accuracies.txt", f"{choice}\n{text}")
    append_record(run.path, evaluation)

    wise_ft_folder = output / "wise-ft"
    is_done = (wise_ft_folder / WISE_FT_TABLE).exists()
    if is_done or run.args["algorithm"] == "CLIPZeroShot":
        return

    result = wise_ft(run, WISE_FT_ALPHAS, suite=suite, output=wise_ft_folder, workers=0)
    for evaluation in result.suite_evaluations:
        append_record(run.path, evaluation)


def _report(
    output: Path, sweep_folder: Path, table: str, note: str, opening: Section | None = None
) -> None:
    """Write the table and the report, print the table and where everything is.

    ``opening``: the first section of the report.
    """
    files.save_text(output / "results.txt", table)
    print(f"{table}\n{note}")

    report = page.write_report([sweep_folder], output / "report", opening=opening).index
    print(f"Table:    {output / 'results.txt'}")
    print(f"Report:   {report} (open it in a browser)")
    print(f"Records:  {sweep_folder}/*/results.jsonl, next to out.txt, err.txt and model.pkl")
