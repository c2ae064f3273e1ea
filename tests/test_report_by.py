"""A report of joint rows: the table, accuracy over the hyperparameter, and comparisons."""

import json
import re

import collect_sweeps
import numpy as np
import pandas as pd
import pytest
import report_page

from domainbed_carft import cli
from domainbed_carft.report import frames, plots
from domainbed_carft.results import collection, selection
from domainbed_carft.results.rows import JointRow

RATES = (0.001, 0.01, 0.1)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """CARFT at three rates, fine-tuning at the default, in three trials on PACS."""
    folder = tmp_path_factory.mktemp("by")
    for target in range(4):
        for trial in range(3):
            options = {"test_envs": [target], "trial_seed": trial}
            for rate in RATES:
                collect_sweeps.write_job(
                    folder,
                    f"CARFT-{target}-{trial}-{rate}",
                    algorithm="CARFT",
                    hparams=json.dumps({"lr": rate}),
                    recorded={"lr": rate},
                    **options,
                )
            collect_sweeps.write_job(
                folder,
                f"CLIPFineTune-{target}-{trial}",
                algorithm="CLIPFineTune",
                recorded={"lr": 0.01},
                **options,
            )
    return folder


def test_the_lines_over_a_hyperparameter_are_the_means_of_the_table(sweep, monkeypatch):
    collected = collection.gather([sweep], by=["lr"])
    (group,) = collected.groups
    checkpoints = frames.checkpoints(selection.select(group.runs, "training-domain"))
    selected = checkpoints[checkpoints["selected"]].drop(columns="step")
    means = frames.over_targets(selected, frames.ACCURACIES)

    drawn = []
    monkeypatch.setattr(
        plots,
        "curves",
        lambda title, name, lines, styles, over, **_: drawn.append((lines, over, [*styles])),
    )
    plots.over_hparams(means, collected.joint_rows, "PACS", lambda *words: "-".join(words))
    ((lines, axis, names),) = drawn
    lines = lines[lines["panel"] == "out_of_domain"]

    assert names == ["CARFT", "CLIPFineTune"]
    assert axis.is_logarithmic
    assert axis.marks == {0.001: "0.001", 0.01: "0.01", 0.1: "0.1"}

    for rate in RATES:
        trials = selected[selected["algorithm"] == f"CARFT (lr {rate})"].groupby("trial")
        expected = trials["out_of_domain"].mean()
        (line,) = lines[(lines["algorithm"] == "CARFT") & (lines["step"] == rate)].itertuples()
        assert line.mean == pytest.approx(expected.mean())
        assert line.error == pytest.approx(expected.std(ddof=0) / 3**0.5)
    assert {*lines[lines["algorithm"] == "CLIPFineTune"]["step"]} == {0.01}


def test_words_stand_side_by_side_in_the_order_of_the_rows():
    rows = {
        "A (average sma)": JointRow("A", {"average": "sma"}),
        "A (average ema)": JointRow("A", {"average": "ema"}),
    }
    means = pd.DataFrame(
        {
            "algorithm": list(rows),
            "trial": [0, 0],
            "out_of_domain": [50.0, 75.0],
            "in_domain": [50.0, np.nan],
        }
    )
    with plots.figure_style():
        (figure,) = plots.over_hparams(means, rows, "PACS", lambda *words: "-".join(words))

    assert figure.name == "PACS-over-average"
    places = [figure.svg.index(f">{name}</text>") for name in ("sma", "ema")]
    assert places == sorted(places)


def test_the_page_has_the_tables_that_its_options_ask_for(sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    words = ["--by", "lr", "--columns", "environments,worst,jobs", "--error", "std"]
    words += ["--against", "CLIPFineTune"]
    assert report_page.report(sweep, tmp_path / "report", *words) == 0

    page = report_page.read(tmp_path / "report")
    header, *rows = page.tables[report_page.TABLE]
    assert header == ["Algorithm", "A", "C", "P", "S", "Worst", "Jobs"]
    assert [row[0] for row in rows] == [*(f"CARFT (lr {rate})" for rate in RATES), "CLIPFineTune"]
    assert (3, "Accuracy over the hyperparameter") in page.headings
    assert "standard deviation" in page.text

    titles = list(page.tables)
    assert any(title.startswith("Minus CLIPFineTune") for title in titles)

    captions = re.sub("<[^>]+>", "", page.text)
    assert "Unit environment: one" in captions and "Worst: the environment" in captions


def test_the_jobs_behind_joint_rows_show_what_is_not_the_default(sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    assert report_page.report(sweep, tmp_path / "report", "--by", "lr") == 0
    _, *rows = report_page.read(tmp_path / "report").tables["Jobs behind the cells: PACS"]
    assert len(rows) == 4 * 3 * 4
    assert {row[3] for row in rows if row[0].startswith("CARFT")} == {
        f"lr {rate}" for rate in RATES
    }

    assert cli.main(["top", str(sweep), "--select", "oracle"]) == 0
