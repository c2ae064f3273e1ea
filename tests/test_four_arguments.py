"""An algorithm builds from its four arguments in the harness, and in a checkout of DomainBed."""

import json
from pathlib import Path

import pytest
import warm
from data_trees import grow, jpeg
from fake_checkout import REPO, run_python_with_torch, write_checkout

CODE = (REPO / "tests" / "four_arguments.py").read_text(encoding="utf-8")
CHECKS = CODE.partition("CHECKS = (")[2].partition(")")[0].replace(",", " ").split()


def write_data(folder, *class_names):
    tree = {style: dict.fromkeys(class_names, 2) for style in ("art", "photo")}
    grow(folder, tree, jpeg(size=(8, 8)))
    return str(folder)


@pytest.fixture(scope="module", params=["harness", "classic"])
def results(request, tmp_path_factory):
    """Name of a check -> its failure, in a host."""
    folder = tmp_path_factory.mktemp(request.param)
    roots = [
        write_data(folder / "first", "cat", "dog"),
        write_data(folder / "other", "bus", "car"),
    ]
    if request.param == "harness":
        done = warm.run("-c", CODE, *roots, cwd=folder)
    else:
        checkout = write_checkout(folder / "checkout", "classic")
        done = run_python_with_torch("-c", CODE, *roots, cwd=Path(checkout))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_an_algorithm_builds_from_its_four_arguments(results, check):
    assert results[check] == ""


def test_every_check_ran(results):
    assert [*results] == CHECKS
