"""The columns of ``carft collect --columns``, against pandas on packed records."""

import json

import collect_sweeps
import evaluated_sweeps
import numpy as np
import pytest
from packed_records import SETTINGS, unpack

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import cost
from domainbed_carft.results import collection
from domainbed_carft.results import columns as table_columns
from domainbed_carft.results.collect import collect


@pytest.fixture(scope="module")
def validated(peers_emoji):
    """What was selected by training-domain validation."""
    return collection.gather([peers_emoji], ["training-domain"])


@pytest.fixture(scope="module")
def all_columns(validated):
    """All columns of it, as a frame."""
    return collect(validated, columns=["all"]).columns


def value(frame, setting, algorithm, column):
    """The row of one algorithm's column in the tables whose setting has this text."""
    is_setting = frame["setting"].str.contains(setting, regex=False)
    rows = frame[is_setting & (frame["algorithm"] == algorithm) & (frame["column"] == column)]
    measured = rows[rows["mean"].notna()]  # times have a column for each device
    return (measured if len(measured) else rows).iloc[0]


def test_every_column_is_that_of_pandas(all_columns, selected):
    by_row = selected.groupby(["variant", "algorithm"])
    assert len(by_row) == 22

    for (variant, algorithm), jobs in by_row:

        def shown(column, variant=variant, algorithm=algorithm):
            return value(all_columns, SETTINGS[variant], algorithm, column)

        for name, of in (("out-of-domain", "out"), ("in-domain", "in")):
            trials = jobs.groupby("trial")[of].mean()
            assert shown(name)["mean"] == pytest.approx(trials.mean(), abs=1e-9)
            assert shown(name)["standard_error"] == pytest.approx(trials.sem(ddof=0), abs=1e-9)

        targets = jobs.groupby("target")["out"].mean()
        labels = ["fluent3d", "line", "noto", "twemoji"]
        assert shown("worst")["mean"] == pytest.approx(targets.min(), abs=1e-9)
        assert shown("worst")["of"] == labels[targets.idxmin()]
        assert shown("average")["mean"] == pytest.approx(targets.mean(), abs=1e-9)

        seconds = jobs["step_seconds"].mean()
        assert shown("step-seconds")["mean"] == pytest.approx(seconds, abs=1e-9)
        assert shown("training-hours")["mean"] == pytest.approx(jobs["hours"].sum(), abs=1e-9)
        rates = 1 if algorithm == "CLIPZeroShot" else 3  # which the search tried
        assert (shown("jobs")["mean"], shown("draws")["mean"]) == (20, rates)


@pytest.mark.parametrize("kind", table_columns.ERROR_KINDS)
def test_errors_are_those_of_pandas(validated, selected, kind):
    results = collect(validated, error=kind)
    by_cell = selected.groupby(["variant", "algorithm", "target"])["out"]
    expected = {
        "domainbed": by_cell.sem(ddof=0),
        "sample": by_cell.sem(),
        "std": by_cell.std(),
    }[kind]

    for (variant, algorithm, target), error in expected.items():
        (table,) = (
            table
            for table in results.tables
            if SETTINGS[variant] in table.setting and not table.averages
        )
        (row,) = (row for row in table.rows if row.algorithm == algorithm)
        assert row.cells[target].standard_error == pytest.approx(error, abs=1e-9)

    assert table_columns.ERROR_KINDS[kind].definition in " ".join(results.as_dict()["caption"])
    assert {entry["error"] for entry in results.as_dict()["tables"]} == {kind}


def test_what_records_lack_is_x_and_says_why(tmp_path):
    unpack(tmp_path, "amp-emoji")
    results = collect(
        tmp_path / "amp-emoji",
        methods=["training-domain"],
        columns=["all"],
    )
    frame = results.columns
    lacking = frame[frame["missing"] != ""].groupby("column")["missing"].unique()
    assert {column: list(reasons) for column, reasons in lacking.items()} == {
        "evaluation-hours": ["the records have no evaluation_time"],
        "memory": ["the records have no memory of a GPU (mem_gb)"],
        "parameters": ["the records have no trained_parameters"],
    }
    costs = frame[frame["column"].isin(["step-seconds", "training-hours"])]
    assert set(costs["device"]) == {cost.UNNAMED_PROCESSOR}


def test_a_column_of_evaluations_names_runs_without_its_figure(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM"], choices=1)
    evaluated_sweeps.write_figures(tmp_path)
    for path in (tmp_path / "CARFT-2-1-0").glob("evaluation_step*.json"):
        figures = json.loads(path.read_text())
        figures["facts"]["validation"] = []
        path.write_text(json.dumps(figures))

    results = collect(tmp_path, methods=["oracle"], columns=["in-domain-unaugmented"])
    first, second = (row.printed_cells[0] for row in results.tables[0].rows)
    assert first.missing == ("no such figure: P trial 1",) and not second.missing
    assert first.n == second.n == 2
    assert results.tables[0].ranks == [[0], [1]]


def test_the_default_columns_are_those_of_today(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM"], choices=1)
    options = ["collect", str(tmp_path), "--select", "training-domain", "--format", "csv"]
    assert cli.main(options) == 0
    default = capsys.readouterr().out
    assert default.startswith("setting,selection,dataset,environment,algorithm,mean,")

    assert cli.main([*options, "--columns", "environments,average"]) == 0
    assert capsys.readouterr().out == default


def test_an_unknown_column_or_error_is_named(peers_emoji, capsys):
    with pytest.raises(CarftError, match="'worts'; did you mean worst"):
        collect(peers_emoji, columns=["worts"])
    with pytest.raises(CarftError, match="'sem'.*sample"):
        collect(peers_emoji, error="sem")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["collect", str(peers_emoji), "--columns", "worts"])
    assert "'worts'; expected one or more of environments," in capsys.readouterr().err


def test_in_domain_beside_out_of_domain_is_not_to_be_compared_with_it(peers_emoji):
    by_oracle = collection.gather([peers_emoji], ["oracle"])

    def warns(*names):
        captions = collect(by_oracle, columns=names).short_captions
        return any("not in-domain with out-of-domain" in caption for caption in captions)

    assert warns("all") and warns("average", "in-domain")
    assert not warns("environments", "average", "memory")


def write_costs(folder, algorithm, device, **keys):
    """Jobs of an algorithm, one a target, with recorded costs; returns their step times."""
    seconds = {}
    for target in range(4):
        name = f"{algorithm}-{device}-{target}"
        job = collect_sweeps.write_job(folder, name, algorithm=algorithm, test_envs=[target])
        seconds[target] = [5.0, 1 + 0.1 * target, 2.0 + target]
        costs = iter([{"step_time": value, "device": device, **keys} for value in seconds[target]])
        collect_sweeps.change_records(job, lambda record, costs=costs: record | next(costs))
    return seconds


def test_costs_of_two_devices_stand_in_columns_of_their_own(tmp_path):
    keys = {"evaluation_time": 9.0, "mem_gb": 7.5, "trained_parameters": 12_345}
    seconds = write_costs(tmp_path, "CARFT", "GPU A", **keys)
    write_costs(tmp_path, "ERM", "GPU B", **keys)
    results = collect(tmp_path, methods=["oracle"], columns=table_columns.NAMES)

    frame = results.columns.set_index(["algorithm", "column", "device"])
    steps = [1, 100, 100]  # checkpoints at 0, 100 and 200
    hours = sum(np.dot(of_job, steps) for of_job in seconds.values()) / 3600
    per_step = np.mean([np.mean(of_job[1:]) for of_job in seconds.values()])
    expected = {
        "step-seconds": per_step,
        "training-hours": hours,
        "evaluation-hours": 4 * 3 * 9.0 / 3600,
        "memory": 7.5,
    }
    for column, figure in expected.items():
        assert frame.loc[("CARFT", column, "GPU A"), "mean"] == pytest.approx(figure, abs=1e-9)
        assert np.isnan(frame.loc[("CARFT", column, "GPU B"), "mean"])
        assert frame.loc[("CARFT", column, "GPU B"), "missing"] == ""
    assert frame.loc[("ERM", "parameters", ""), "mean"] == 12_345

    header = results.grids[0].header
    assert "s/step, GPU A" in header and "s/step, GPU B" in header
    assert "Costs were measured on GPU A; GPU B." in results.as_dict()["caption"]


def test_a_row_of_two_devices_is_never_averaged_over_them(tmp_path):
    seconds = write_costs(tmp_path, "CARFT", "GPU A")
    job = tmp_path / "CARFT-GPU A-3"
    collect_sweeps.change_records(job, lambda record: {**record, "device": "GPU B"})
    results = collect(tmp_path, methods=["oracle"], columns=["step-seconds"])

    means = results.columns.set_index("device")["mean"]
    of_jobs = [np.mean(of_job[1:]) for of_job in seconds.values()]
    assert means["GPU A"] == pytest.approx(np.mean(of_jobs[:3]), abs=1e-9)
    assert means["GPU B"] == pytest.approx(of_jobs[3], abs=1e-9)


def test_foreign_records_without_costs_have_x_that_names_the_keys(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], choices=1)
    columns = ["step-seconds", "evaluation-hours", "parameters"]
    results = collect(tmp_path, methods=["oracle"], columns=columns)

    grid = results.grids[0]
    assert grid.rows == [["ERM", "X [1]", "X [2]", "X [3]"]]
    assert grid.notes[0] == "[1] the records have no step_time."
    assert set(results.columns["device"]) == {cost.UNKNOWN_DEVICE, ""}
