"""Suites of test sets in `carft collect` and `carft report`, from the jobs' evaluations."""

import itertools
import json

import numpy as np
import pytest
import report_page
import suite_evaluations
from collect_sweeps import write_job

from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.report import page
from domainbed_carft.results import collection, suites
from domainbed_carft.results.cells import Cell
from domainbed_carft.results.collect import collect
from domainbed_carft.suites import catalogue

SETS = [test_set.name for test_set in catalogue.get("imagenet").sets]
STEP = 200  # the last step of `write_job`
CURVE = (None, 0.0, 0.5, 1.0, "zero-shot")  # alphas of CARFT, and CLIPZeroShot


def write_run(
    folder,
    algorithm,
    trial,
    evaluations,
    suite="imagenet",
    test_envs=(),
    environments=("train",),
    nll=None,
):
    """Write a job and its ``evaluations``: (accuracies of sets, alpha).

    A set with an accuracy below 0.1 is incomplete.
    """
    job = write_job(
        folder,
        f"{algorithm}-{trial}",
        dataset={"imagenet": "ImageNet"}.get(suite, suite),
        algorithm=algorithm,
        trial_seed=trial,
        test_envs=[*test_envs],
        environments=[*environments],
        recorded={"clip_backbone": "ViT-B/16"},
    )
    args = json.loads((job / RECORDS).read_text().splitlines()[0])["args"]
    for accuracies, alpha in evaluations:
        per_class = 0.25 + trial / 2 if suite == "OxfordIIITPet" else None
        figures = {"alpha": alpha, "per_class": per_class, "nll": nll}
        suite_evaluations.save(job, args, STEP, suite, accuracies, **figures)
    return job


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """CARFT with a WiSE-FT curve, and CLIPZeroShot, whose first trial has an incomplete set."""
    folder = tmp_path_factory.mktemp("sweep")
    draw = np.random.RandomState(0)
    accuracies = {}
    for trial, alpha in itertools.product(range(2), CURVE):
        accuracies[alpha, trial] = dict(zip(SETS, draw.uniform(0.2, 1, 6).tolist()))
    accuracies["zero-shot", 0]["ObjectNet"] = 0.05
    for trial in range(2):
        *curve, zero_shot = ((accuracies[a, trial], a) for a in CURVE)
        write_run(folder, "CARFT", trial, curve)
        write_run(folder, "CLIPZeroShot", trial, [(zero_shot[0], None)])
    return folder, accuracies


def format_cell(values):
    """Format mean, standard error and number as tables do."""
    return f"{np.mean(values):.1f} ± {np.std(values) / len(values) ** 0.5:.1f} ({len(values)})"


def test_suite_rows_are_means_over_trials_next_to_published_figures(sweep):
    folder, accuracies = sweep
    results = collect(folder, columns=["average", "ece"], compare_published=True)
    grids = {grid.title: grid for grid in results.grids}
    grid = grids["Suite imagenet, trained on ImageNet"]
    means = ["Mean of the shifts", "Mean without ObjectNet"]
    assert grid.header == ["Algorithm", "ImageNet, in distribution", *SETS[1:], *means]

    rows = {row[0]: row[1:] for row in grid.rows}
    labels = ["CARFT", "CARFT, alpha 0", "CARFT, alpha 0.5", "CARFT, alpha 1", "CLIPZeroShot"]
    assert list(rows) == labels
    for label, alpha in (("CARFT", None), ("CARFT, alpha 0.5", 0.5)):
        trials = [[100 * accuracies[alpha, t][name] for name in SETS] for t in (0, 1)]
        expected = [format_cell(column) for column in zip(*trials)]
        expected.append(format_cell([np.mean(trial[1:]) for trial in trials]))
        expected.append(format_cell([np.mean(trial[1:5]) for trial in trials]))
        assert rows[label] == expected

    # The first trial has no mean of the shifts, because one of its sets is incomplete.
    zero_shot = [100 * accuracies["zero-shot", trial]["ObjectNet"] for trial in (0, 1)]
    assert rows["CLIPZeroShot"][5] == f"{format_cell(zero_shot)}*"
    assert rows["CLIPZeroShot"][6].endswith(" (1) [1]") and rows["CLIPZeroShot"][7].endswith(" (2)")
    (note,) = (note for note in grid.notes if note.startswith("[1]"))
    assert note == "[1] incomplete: ObjectNet."

    published = grids["Suite imagenet, with published numbers"]
    own_rows = [row for row in published.rows if row[0].endswith("yours")]
    assert own_rows == [
        [f"{name}, ViT-B/16, yours", *rows[name]] for name in ("CARFT", "CLIPZeroShot")
    ]
    published_rows = {row[0]: row[1:] for row in published.rows}
    values = [82.72, 72.76, 71.32, 48.49, 49.87, 54.83]  # FLYP by TRACER's table 1
    values += [np.mean(values[1:]), np.mean(values[1:5])]
    assert published_rows["FLYP (TRACER), ViT-B/16"] == [f"{value:.1f}" for value in values]
    assert published_rows["CaRot (TRACER), ViT-L/14"] == ["87.0", *"-----", "74.1", "-"]


def test_task_tables_show_the_mean_over_classes(tmp_path):
    for trial in range(2):
        write_run(tmp_path, "CARFT", trial, [({"test": 0.5}, None)], "OxfordIIITPet")
    grids = {grid.title: grid for grid in collect(tmp_path, compare_published=True).grids}
    assert grids["Suite OxfordIIITPet"].rows == [["CARFT", "50.0 ± 17.7 (2)"]]
    published_rows = grids["Suite OxfordIIITPet, with published numbers"].rows
    assert ["zero-shot CLIP, ViT-B/16", "88.9"] in published_rows


def test_curve_of_wise_ft_has_the_run_and_its_alphas(tmp_path):
    alphas = {None: 0.6, 0.0: 0.4, 0.5: 0.5}
    evaluations = []
    for alpha, accuracy in alphas.items():
        shifted = dict.fromkeys(SETS[1:], accuracy - 0.01) | {"ObjectNet": accuracy + 0.04}
        evaluations.append(({"ImageNet": accuracy + 0.1, **shifted}, alpha))
    write_run(tmp_path, "CARFT", 0, evaluations)
    (group,) = collection.gather([tmp_path]).groups
    (table,) = suites.build(group)
    points = suites.curve_points(table)
    expected = [("CARFT", alpha, 100 * y + 10, 100 * y) for alpha, y in alphas.items()]
    assert [point[:2] for point in points] == [point[:2] for point in expected]
    assert [p[2:] for p in points] == [pytest.approx(point[2:]) for point in expected]


def test_suite_cell_over_some_of_the_trials_is_incomplete(tmp_path, monkeypatch):
    """CARFT was tested in both trials, and ERM in the first of two."""
    report_page.skip_drawing(monkeypatch)
    evaluation = (dict.fromkeys(SETS, 0.5), None)
    for algorithm, trial in itertools.product(("CARFT", "ERM"), range(2)):
        is_tested = (algorithm, trial) != ("ERM", 1)
        write_run(tmp_path / "sweep", algorithm, trial, [evaluation] if is_tested else [])

    results = collect(tmp_path / "sweep")
    (table,) = results.suite_tables
    assert all(cell.is_complete and cell.n == 2 for cell in table.rows["CARFT"].values())
    assert not any(cell.is_complete or cell.n != 1 for cell in table.rows["ERM"].values())
    assert results.defects == {"incomplete cells": len(table.printed)}
    assert not page.write_report([tmp_path / "sweep"], tmp_path / "report").is_complete


def test_test_set_that_no_run_has_is_no_gap(tmp_path):
    """Both lack the first set, and ERM also lacks the second one."""
    for algorithm, names in (("CARFT", SETS[1:]), ("ERM", SETS[2:])):
        write_run(tmp_path, algorithm, 0, [(dict.fromkeys(names, 0.5), None)])
    (table,) = collect(tmp_path).suite_tables
    columns = [column.name for column in table.printed]
    gaps = {
        row: [name for name, cell in zip(columns, cells.values()) if cell.lacks_results]
        for row, cells in table.rows.items()
    }
    assert gaps == {"CARFT": [], "ERM": [SETS[1], "mean", "mean_without_objectnet"]}
    assert table.rows["CARFT"][table.printed[0]] == Cell()


def test_mean_over_a_test_set_that_no_run_has_is_no_gap(tmp_path):
    write_run(tmp_path, "CARFT", 0, [(dict.fromkeys([SETS[0], *SETS[2:]], 0.5), None)])
    (table,) = collect(tmp_path).suite_tables
    cells = {column.name: cell for column, cell in table.rows["CARFT"].items()}
    assert cells["mean"] == cells["mean_without_objectnet"] == cells[SETS[1]] == Cell()
    assert cells[SETS[2]].mean == 50 and not cells["mean"].lacks_results


@pytest.mark.parametrize(("targets", "skipped"), [([], []), ([0], SETS[2:4])])
def test_run_with_a_target_is_not_scored_on_its_training_environments(tmp_path, targets, skipped):
    accuracies = dict(zip(SETS, (0.9, 0.8, 0.6, 0.5, 0.3, 0.2)))
    environments = SETS[1:4]
    for trial in range(2):
        evaluations = [(accuracies, None)]
        more = {"test_envs": targets, "environments": environments}
        write_run(tmp_path, "CARFT", trial, evaluations, "imagenet", **more)
    (table,) = collect(tmp_path).suite_tables
    cells = {column.name: cell for column, cell in table.rows["CARFT"].items()}
    shifted = [name for name in SETS[1:] if name not in skipped]
    for name, value in accuracies.items():
        assert cells[name] == Cell() if name in skipped else cells[name].mean == 100 * value, name
    assert cells["mean"].mean == pytest.approx(np.mean([100 * accuracies[n] for n in shifted]))


def test_metrics_have_their_own_unit_and_the_requested_error(tmp_path):
    """What an evaluation does not have is a gap with its reason."""
    for trial in range(2):
        write_run(tmp_path, "CARFT", trial, [(dict.fromkeys(SETS, 0.5 + trial / 10), None)])
        write_run(tmp_path, "ERM", trial, [(dict.fromkeys(SETS, 0.5), None)], nll=1.5)
    results = collect(tmp_path, columns=["average", "ece", "nll", "ece-scaled"], error="std")
    accuracy, ece, nll, scaled = results.suite_tables
    assert [table.name.split(", ")[-1] for table in (ece, nll, scaled)] == ["ECE", "NLL", "ECE/T"]
    cells = [[*table.rows["CARFT"].values()] for table in (accuracy, ece, nll, scaled)]
    assert cells[0][-1].standard_error == pytest.approx(100 * np.std([0.5, 0.6], ddof=1))
    assert (cells[1][0].mean, cells[1][-1].mean) == pytest.approx((10, 10))
    assert [column.unit for column in nll.printed] == ["nats"] * len(nll.printed)
    assert [cell.mean for cell in nll.rows["ERM"].values()] == [1.5] * len(nll.printed)
    assert cells[2][0].mean is None and cells[2][0].missing == ("not recorded: trial 0, trial 1",)
    assert "no temperature" in cells[3][0].missing[0]
    assert all(cell.lacks_results for cell in (*cells[2], *cells[3]))


def test_evaluation_of_another_step_or_job_is_not_shown(tmp_path):
    job = write_run(tmp_path, "CARFT", 0, [(dict.fromkeys(SETS, 0.5), None)])
    args = json.loads((job / RECORDS).read_text().splitlines()[0])["args"]
    suite_evaluations.save(job, args, STEP - 100, "imagenet", dict.fromkeys(SETS, 0.9))
    (table,) = collect(tmp_path).suite_tables
    assert [cell.mean for cell in table.rows["CARFT"].values()] == [50] * len(table.printed)

    suite_evaluations.save(job, {**args, "trial_seed": 1}, STEP, "imagenet", {"ImageNet": 0.9})
    (table,) = collect(tmp_path).suite_tables
    assert all("another job" in cell.missing[0] for cell in table.rows["CARFT"].values())


def test_report_has_the_suite_table_and_figure(sweep, tmp_path):
    folder, _ = sweep
    page.write_report([folder], tmp_path)
    report = report_page.read(tmp_path)
    assert "Suite imagenet, trained on ImageNet" in report.tables
    assert "trained on ImageNet (incomplete: CLIPZeroShot) <" in report.text
    assert "Some cells are incomplete" in report.text
    assert (tmp_path / "figures" / "suite-imagenet.svg").is_file()
