"""The order of algorithms in tables, `carft top` and reports: as declared, else as in the docs."""

import json
import re
from pathlib import Path

import collect_sweeps
import pytest
import report_page
from sweep_folders import launched, record

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.report import plots

DECLARED = ["CARFT", "ERM", "CLIPood", "CLIPMIRO", "CLIPWiSEFT"]
# Three declared orders in which nobody would sort them.
ORDERS = [DECLARED, DECLARED[::-1], ["CLIPMIRO", "CARFT", "CLIPWiSEFT", "ERM", "CLIPood"]]
MIXED = ["Mixup", "CLIPZeroShot", "ERM", "FLYP", "CLIPFineTune", "CARFT"]
WITHOUT_A_MANIFEST = ["CARFT", "CLIPFineTune", "CLIPZeroShot", "FLYP", "ERM", "Mixup"]


def rows_of_collect(folder, capsys):
    assert cli.main(["collect", str(folder), "--format", "json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    return [[row["algorithm"] for row in table["rows"]] for table in tables]


def order_of_top(folder, capsys):
    assert cli.main(["top", str(folder), "--select", "oracle", "--json"]) == 0
    return list(dict.fromkeys(entry["algorithm"] for entry in json.loads(capsys.readouterr().out)))


def orders_in_report(folder, monkeypatch):
    """The rows of the page's table, and the algorithms of dots and legend in drawing order."""
    dots = []
    draw = plots.dots

    def draw_and_note(title, name, cells, *options):
        dots.append([*cells["algorithm"]])
        return draw(title, name, cells, *options)

    monkeypatch.setattr(plots, "dots", draw_and_note)
    page = report_page.page_of(folder)
    table = next(iter(page.tables.values()))
    legend = re.findall("<li><img [^>]*> (.*?)</li>", page.text)
    return [[row[0] for row in table[1:]], *dots, legend]


@pytest.mark.parametrize("declared", ORDERS)
def test_rows_come_in_the_declared_order(tmp_path, capsys, monkeypatch, declared):
    report_page.leave_undrawn(monkeypatch)
    collect_sweeps.launch(tmp_path, declared)
    for rows in rows_of_collect(tmp_path, capsys):
        assert rows == declared

    assert order_of_top(tmp_path, capsys) == declared

    orders = orders_in_report(tmp_path, monkeypatch)
    assert len(orders) > 3 and all(algorithms == declared for algorithms in orders)


def test_without_a_manifest_carft_is_first_and_hosts_algorithms_are_last(
    tmp_path, capsys, monkeypatch
):
    report_page.leave_undrawn(monkeypatch)
    collect_sweeps.write_sweep(tmp_path, MIXED, trials=1, choices=1)
    for rows in rows_of_collect(tmp_path, capsys):
        assert rows == WITHOUT_A_MANIFEST

    assert order_of_top(tmp_path, capsys) == WITHOUT_A_MANIFEST
    assert all(
        algorithms == WITHOUT_A_MANIFEST for algorithms in orders_in_report(tmp_path, monkeypatch)
    )


SWEEP = "name: x\ndatasets: [PACS]\ntrials: 1\nsteps: 11\nalgorithms: "


def test_an_algorithm_that_is_added_to_the_file_has_its_place_there(tmp_path, capsys):
    for declared in (["CLIPood", "CARFT"], ["CLIPood", "ERM", "CARFT"]):
        jobs = launched(tmp_path, f"{SWEEP}[{', '.join(declared)}]\n")
    for job in jobs:
        record(job, 0)

    assert all(rows == declared for rows in rows_of_collect(tmp_path, capsys))

    launched(tmp_path, f"{SWEEP}[CLIPMIRO]\n")
    declared = manifest.read(Path(tmp_path)).algorithms
    assert declared == ("CLIPMIRO", "CLIPood", "ERM", "CARFT")


def test_an_order_of_variants_does_not_change_the_declared_one(tmp_path):
    variants = "variants: {a: {algorithms: [CLIPood]}, b: {algorithms: [CARFT]}}\n"
    launched(tmp_path, f"{SWEEP}[CARFT, CLIPood]\n{variants}")
    assert manifest.read(Path(tmp_path)).algorithms == ("CARFT", "CLIPood")
