"""The columns of ``carft collect --columns``, compared with pandas on packed records."""

import json

import collect_sweeps
import evaluated_sweeps
import numpy as np
import pytest
from packed_records import SETTINGS

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import cost, records
from domainbed_carft.results import cells as table_cells
from domainbed_carft.results import collection
from domainbed_carft.results import columns as table_columns
from domainbed_carft.results.collect import collect


@pytest.fixture(scope="module")
def validated(peers_emoji):
    return collection.gather([peers_emoji], ["training-domain"])


def test_every_column_equals_pandas(validated, selected):
    frame = collect(validated, columns=["all"]).cells
    # Times have a column for each device.
    frame = frame[frame["mean"].notna() & (frame["dataset"] != "")]
    by_row = selected.groupby(["variant", "algorithm"])
    assert len(by_row) == 22

    for (variant, algorithm), jobs in by_row:
        is_setting = frame["setting"].str.contains(SETTINGS[variant], regex=False)
        cells = frame[is_setting & (frame["algorithm"] == algorithm)].set_index("column")

        targets = jobs.groupby("target")["out"].mean()
        expected = {
            "worst": targets.min(),
            "average": targets.mean(),
            "step-seconds": jobs["step_seconds"].mean(),
            "training-hours": jobs["hours"].sum(),
            "jobs": 20,
            "draws": 1 if algorithm == "CLIPZeroShot" else 3,  # rates that the search tried
        }
        for name, column in (("out-of-domain", "out"), ("in-domain", "in")):
            trials = jobs.groupby("trial")[column].mean()
            expected[name] = trials.mean()
            error = trials.sem(ddof=0)
            assert cells.loc[name, "standard_error"] == pytest.approx(error, abs=1e-9)
        for name, value in expected.items():
            assert cells.loc[name, "mean"] == pytest.approx(value, abs=1e-9)
        labels = ["fluent3d", "line", "noto", "twemoji"]
        assert cells.loc["worst", "of"] == labels[targets.idxmin()]


@pytest.mark.parametrize("kind", table_cells.ERROR_KINDS)
def test_errors_equal_pandas(validated, selected, kind):
    results = collect(validated, error=kind)
    by_cell = selected.groupby(["variant", "algorithm", "target"])["out"]
    errors = {"domainbed": by_cell.sem(ddof=0), "sample": by_cell.sem(), "std": by_cell.std()}
    tables = [table for table in results.tables if not table.averages]

    for (variant, algorithm, target), error in errors[kind].items():
        (table,) = (table for table in tables if SETTINGS[variant] in table.setting)
        cell = table.rows[algorithm][table.accuracies[target]]
        assert cell.standard_error == pytest.approx(error, abs=1e-9)
    assert {entry["error"] for entry in results.as_dict()["tables"]} == {kind}


def test_metric_missing_in_one_run_marks_the_cell_and_names_the_run(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM"], choices=1)
    evaluated_sweeps.write_figures(tmp_path)
    for path in (tmp_path / "CARFT-2-1-0").glob("evaluation_step*.json"):
        metrics = json.loads(path.read_text())
        metrics["facts"]["validation"] = []
        path.write_text(json.dumps(metrics))

    results = collect(tmp_path, methods=["oracle"], columns=["in-domain-unaugmented"])
    table = results.tables[0]
    (column,) = table.printed
    first, second = (row[column] for row in table.rows.values())
    assert first.missing == ("not evaluated for: P trial 1",) and not second.missing
    assert first.n == second.n == 2
    assert table.get_ranks(column) == {"CARFT": table_cells.OTHER, "ERM": table_cells.BEST}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["worts"]}, "'worts'; did you mean worst"),
        ({"error": "sem"}, "'sem'.*sample"),
        ({"ignored": ["step"]}, "'step'.*steps"),
    ],
)
def test_unknown_names_fail_with_a_suggestion(tmp_path, options, message):
    collect_sweeps.write_job(tmp_path)
    with pytest.raises(CarftError, match=message):
        collect(tmp_path, **options)


@pytest.mark.parametrize(("method", "count"), [("oracle", 16), ("leave-one-domain-out", 40)])
def test_pairs_of_targets_count_only_for_leave_one_domain_out(tmp_path, method, count):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], pairs=True)
    frame = collect(tmp_path, methods=[method], columns=["jobs", "draws"]).cells
    frame = frame[frame["dataset"] == "PACS"]
    assert frame["mean"].tolist() == [count, 2]


def add_costs(record):
    """Add costs to a record: the last target is trained on device B, the others on A."""
    (target,) = record["args"]["test_envs"]
    step_times = {0: 5.0, 100: 1 + 0.1 * target, 200: 2.0 + target}
    costs = {"evaluation_time": 9.0, "mem_gb": 7.5, "trained_parameters": 12_345}
    return record | costs | {"step_time": step_times[record["step"]], "device": "AAAB"[target]}


def test_costs_have_a_column_for_each_device(tmp_path):
    for target in range(4):
        job = collect_sweeps.write_job(tmp_path, str(target), test_envs=[target])
        collect_sweeps.change_records(job, add_costs)
    results = collect(tmp_path, methods=["oracle"], columns=table_columns.NAMES)
    assert {"s/step, A", "s/step, B"} <= set(results.grids[0].header)

    frame = results.cells[results.cells["dataset"] == "PACS"]
    cells = frame.set_index(["column", "device"])["mean"]
    # The first record does not count for s/step.
    later_means = [np.mean([1 + 0.1 * target, 2.0 + target]) for target in range(4)]
    expected = {
        ("step-seconds", "A"): np.mean(later_means[:3]),
        ("step-seconds", "B"): later_means[3],
        ("training-hours", "A"): sum(5 + 200 * mean for mean in later_means[:3]) / 3600,
        ("evaluation-hours", "A"): 3 * 3 * 9.0 / 3600,
        ("memory", "A"): 7.5,
        ("parameters", ""): 12_345,
    }
    assert cells[[*expected]].to_dict() == pytest.approx(expected, abs=1e-9)


def test_costs_are_read_only_for_columns_that_print_them(tmp_path, monkeypatch):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    costs = []

    def add_cost(run_records):
        costs.append(cost.recorded_cost(run_records))
        return costs[-1]

    monkeypatch.setattr(records, "recorded_cost", add_cost)
    collect(tmp_path, columns=["environments", "average", "worst", "jobs"])
    assert not costs
    runs = collect(tmp_path, columns=["memory"]).collection.runs
    assert len(costs) == len(runs) > 0
