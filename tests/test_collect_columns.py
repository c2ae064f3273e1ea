"""The columns of ``carft collect --columns`` and ``--full``, against pandas on packed records."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from domainbed_carft import cli
from domainbed_carft.cli import results as command
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import cost
from domainbed_carft.results import cells, measures
from domainbed_carft.results.collect import collect

ARCHIVE = Path(__file__).parents[1] / "benchmarks" / "records" / "peers-emoji.tar.xz"
STEPS = [0, 25, 50, 75, 100]


@pytest.fixture(scope="session")
def peers_emoji(tmp_path_factory):
    """The folder of the sweep peers-emoji, unpacked from the records of the repository."""
    folder = tmp_path_factory.mktemp("packed")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "peers-emoji"


@pytest.fixture(scope="session")
def all_columns(peers_emoji):
    """All columns of the records by training-domain validation, as a frame."""
    names = command.COLUMNS_OF_RECORDS
    results = collect(peers_emoji, methods=["training-domain"], columns=names)
    return results.columns


@pytest.fixture(scope="session")
def selected(peers_emoji):
    """A row for each job: its checkpoint by training-domain validation, and what it cost."""
    rows = []
    for path in peers_emoji.glob("*/*/results.jsonl"):
        records = [json.loads(line) for line in path.open()]
        (target,) = records[0]["args"]["test_envs"]
        others = [env for env in range(4) if env != target]
        validation = [np.mean([r[f"env{env}_out_acc"] for env in others]) for r in records]
        best = records[int(np.argmax(validation))]

        counts = np.diff([-1, *(record["step"] for record in records)])
        seconds = np.array([record["step_time"] for record in records])
        later = slice(1, None) if len(records) > 1 else slice(None)
        row = {
            "variant": path.parts[-3],
            "algorithm": records[0]["args"]["algorithm"],
            "target": target,
            "trial": records[0]["args"]["trial_seed"],
            "out": 100 * best[f"env{target}_in_acc"],
            "in": 100 * max(validation),
            "step_seconds": np.average(seconds[later], weights=counts[later]),
            "hours": (seconds * counts).sum() / 3600,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def value(frame, setting, algorithm, column):
    """The row of one algorithm's column in the tables whose setting has this text."""
    is_setting = frame["setting"].str.contains(setting, regex=False)
    rows = frame[is_setting & (frame["algorithm"] == algorithm) & (frame["column"] == column)]
    return rows.iloc[0]


SETTINGS = {
    "methods": "hparam wise_alpha default, hparam average default",
    "CARFT+WiSE-FT": "hparam wise_alpha 0.5",
    "CARFT+beta": '"beta"',
    "CARFT+ema": '"ema"',
    "CARFT+sma": '"sma"',
}


def test_every_column_is_that_of_pandas(all_columns, selected):
    by_row = selected.groupby(["variant", "algorithm"])
    assert len(by_row) == 17

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
        assert (shown("jobs")["mean"], shown("draws")["mean"]) == (20, 1)


@pytest.mark.parametrize("kind", cells.ERROR_KINDS)
def test_errors_are_those_of_pandas(peers_emoji, selected, kind):
    results = collect(peers_emoji, methods=["training-domain"], error=kind)
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

    assert cells.ERROR_KINDS[kind].definition in " ".join(results.as_dict()["caption"])
    assert {entry["error"] for entry in results.as_dict()["tables"]} == {kind}


def test_what_records_lack_is_x_and_says_why(all_columns):
    lacking = all_columns[all_columns["missing"] != ""].groupby("column")["missing"].unique()
    assert {column: list(reasons) for column, reasons in lacking.items()} == {
        "evaluation-hours": ["the records have no evaluation_time"],
        "memory": ["the records have no memory of a GPU (mem_gb)"],
        "parameters": ["the records have no trained_parameters"],
    }
    costs = all_columns[all_columns["column"].isin(["step-seconds", "training-hours"])]
    assert set(costs["device"]) == {cost.UNNAMED_PROCESSOR}


def test_the_default_columns_are_those_of_today(peers_emoji, capsys):
    options = ["collect", str(peers_emoji), "--select", "training-domain", "--format", "csv"]
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


def test_the_command_has_the_names_of_the_modules():
    assert command.COLUMNS == measures.NAMES
    assert tuple(cells.ERROR_KINDS) == command.ERRORS
