"""`collect`, `top` and `write_report` as functions of Python: the same as the commands print."""

import json
import re
from pathlib import Path

import collect_sweeps
import numpy as np
import pytest
import report_page

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.report.page import write_report
from domainbed_carft.results import collection, selection, tables
from domainbed_carft.results.collect import collect
from domainbed_carft.results.top import top


@pytest.fixture
def sweep(tmp_path):
    """A launched sweep of two algorithms, with a job that was not run and one that diverged."""
    folder = tmp_path / "sweep"
    collect_sweeps.launch(
        folder,
        ("CARFT", "CLIPFineTune"),
        run=lambda args: (args["algorithm"], args["test_envs"]) != ("CARFT", [3]),
    )
    return folder


def printed_json(capsys, *words):
    assert cli.main([*map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_collect_returns_what_the_command_prints(sweep, capsys):
    results = collect(sweep, methods=["oracle"], against="CLIPFineTune", compare_published=True)

    options = ["--select", "oracle", "--against", "CLIPFineTune"]
    options += ["--compare", "published", "--format", "json"]
    assert results.as_dict() == printed_json(capsys, "collect", sweep, *options)


def test_cells_are_the_rows_of_the_csv(sweep, capsys):
    cells = collect(sweep).cells
    assert cli.main(["collect", str(sweep), "--format", "csv"]) == 0

    header, *lines = capsys.readouterr().out.splitlines()
    assert ",".join(cells.columns) == header
    assert len(cells) == len(lines)
    incomplete = cells[cells["missing"] != ""]
    assert set(incomplete["algorithm"]) == {"CARFT"}
    assert incomplete["mean"].isna().any() and (cells["n"] <= 2).all()


def test_records_have_the_accuracies_of_the_files(sweep):
    records = collect(sweep).records
    keys = ["folder", "step"]
    by_checkpoint = records.set_index(keys).sort_index()

    lines = [line for path in sweep.glob("*/results.jsonl") for line in path.open()]
    assert len(records) == len(lines)
    folder = sorted(sweep.glob("*/results.jsonl"))[0].parent
    for line in (folder / "results.jsonl").open():
        recorded = json.loads(line)
        row = by_checkpoint.loc[(str(folder), recorded["step"])]
        assert row["test_envs"] == tuple(recorded["args"]["test_envs"])
        for env in range(4):
            assert row[f"env{env}_in_acc"] == recorded[f"env{env}_in_acc"]
            assert row[f"env{env}_out_acc"] == recorded[f"env{env}_out_acc"]


def test_data_sets_with_fewer_environments_have_nan(tmp_path):
    collect_sweeps.write_job(tmp_path, "small", environments=["a", "b"], dataset="Own")
    collect_sweeps.write_job(tmp_path, "large")
    records = collect([tmp_path]).records.set_index("dataset")

    assert np.isnan(records.loc["Own", "env3_in_acc"]).all()
    assert not np.isnan(records.loc["PACS", "env3_in_acc"]).any()


def test_an_unknown_part_to_ignore_is_named(sweep):
    with pytest.raises(CarftError, match="'step'.*steps"):
        collect(sweep, ignored=["step"])


@pytest.mark.parametrize("form", [str, Path, lambda path: [str(path)], lambda path: (path,)])
def test_folders_are_a_path_or_several(sweep, tmp_path, form, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    folders = form(sweep)
    assert collect(folders).as_dict() == collect([sweep]).as_dict()
    assert top(folders).entries == top([sweep]).entries
    report = write_report(folders, str(tmp_path / "report"), n_examples=0)
    assert report.index == tmp_path / "report" / "index.html" and report.index.is_file()


@pytest.mark.parametrize("wrong", ["runs", ["runs"], 5, None, [5], b"runs"])
def test_what_is_no_folder_is_named_in_a_carft_error(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = str(wrong[0] if isinstance(wrong, list) else wrong)
    functions = [collect, top, lambda folders: write_report(folders, "report")]
    for function in functions:
        with pytest.raises(CarftError, match=f"(folder: |path is ){re.escape(name)}"):
            function(wrong)


def test_top_returns_what_the_command_prints(sweep, capsys):
    best = top([sweep], methods=["oracle"], only="CARFT, test environments 1")
    options = ["--json", "--select", "oracle", "--only", "CARFT, test environments 1"]
    entries = [entry.as_dict() for entry in best.entries]
    assert entries == printed_json(capsys, "top", sweep, *options)


def test_what_was_gathered_is_selected_once_for_all_that_show_it(sweep, monkeypatch):
    calls = []
    select = selection.select

    def counted(runs, method):
        calls.append(method)
        return select(runs, method)

    monkeypatch.setattr(selection, "select", counted)
    gathered = collection.gather(sweep, methods=["oracle", "training-domain"])
    collect(gathered, columns=["all"], against="CARFT", compare_published=True)
    top(gathered)
    tables.by_environment(gathered, ["jobs"])
    # The last is asked for by suites.
    assert sorted(calls) == ["in-domain", "oracle", "training-domain"]


def test_a_report_says_that_it_is_incomplete(sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    report = write_report([sweep], tmp_path / "report", n_examples=0)
    assert report.index == tmp_path / "report" / "index.html"
    assert report.index.is_file()
    assert not report.is_complete
    assert "switched off" in report.why_no_examples
