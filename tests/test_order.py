"""The order of algorithms in tables and `carft top`: as declared, else as in the docs."""

import pytest
from collect_sweeps import launch, write_sweep
from sweep_folders import launched, record

from domainbed_carft.jobs import manifest
from domainbed_carft.results.collect import collect
from domainbed_carft.results.top import top


def check_order(folder, expected):
    for table in collect(folder).tables:
        assert [row.algorithm for row in table.rows] == expected
    entries = top(folder, methods=["oracle"]).entries
    assert list(dict.fromkeys(entry.algorithm for entry in entries)) == expected


@pytest.mark.parametrize(
    "declared",
    [
        ["CARFT", "ERM", "CLIPood", "CLIPMIRO", "CLIPWiSEFT"],
        ["CLIPMIRO", "CARFT", "CLIPWiSEFT", "ERM", "CLIPood"],
    ],
)
def test_rows_are_in_the_declared_order(tmp_path, declared):
    launch(tmp_path, declared)
    check_order(tmp_path, declared)


def test_without_a_manifest_carft_is_first_and_algorithms_of_hosts_are_last(tmp_path):
    algorithms = ["Mixup", "CLIPZeroShot", "ERM", "FLYP", "CLIPFineTune", "CARFT"]
    write_sweep(tmp_path, algorithms, trials=1, choices=1)
    check_order(tmp_path, ["CARFT", "CLIPFineTune", "CLIPZeroShot", "FLYP", "ERM", "Mixup"])


SWEEP = "name: x\ndatasets: [PACS]\ntrials: 1\nsteps: 11\nalgorithms: "


def test_an_algorithm_that_is_added_to_the_file_has_its_place_there(tmp_path):
    for declared in (["CLIPood", "CARFT"], ["CLIPood", "ERM", "CARFT"]):
        jobs = launched(tmp_path, f"{SWEEP}[{', '.join(declared)}]\n")
    for job in jobs:
        record(job, 0)
    check_order(tmp_path, declared)

    launched(tmp_path, f"{SWEEP}[CLIPMIRO]\n")
    assert manifest.read(tmp_path).algorithms == ("CLIPMIRO", "CLIPood", "ERM", "CARFT")


def test_an_order_of_variants_does_not_change_the_declared_one(tmp_path):
    variants = "variants: {a: {algorithms: [CLIPood]}, b: {algorithms: [CARFT]}}\n"
    launched(tmp_path, f"{SWEEP}[CARFT, CLIPood]\n{variants}")
    assert manifest.read(tmp_path).algorithms == ("CARFT", "CLIPood")
