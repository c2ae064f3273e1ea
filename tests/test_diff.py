"""``carft diff``: what differs between runs and sweeps, and its exit status."""

import json

import collect_sweeps
import pytest
import sweep_folders

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.sweep.difference_printing import table_rows
from domainbed_carft.sweep.differences import diff
from domainbed_carft.sweep.hparam_defaults import expected_hparams

VERSIONS = "\tPyTorch: {}\n\tNumPy: 2.0.1\n"


def write_run(folder, name="job", torch="2.6.0", **facts):
    """A job's folder with the versions that train printed; returns it as text."""
    job = collect_sweeps.write_job(folder, name, **facts)
    (job / "out.txt").write_text(VERSIONS.format(torch))
    return str(job)


def values(comparison):
    """Part -> the values of both sides."""
    return {entry.part: (entry.first, entry.second) for entry in comparison.differences}


def test_equal_runs_have_no_differences_and_status_0(tmp_path, capsys):
    run = write_run(tmp_path)
    assert cli.main(["diff", run, run]) == 0
    assert "No differences" in capsys.readouterr().out


def test_runs_differ_in_settings_versions_data_and_prompts_and_in_nothing_else(tmp_path, capsys):
    first = write_run(
        tmp_path,
        "first",
        recorded={"lr": 1e-3, "momentum": 1, "prompts_digest": "1" * 64},
        data_edition="as published",
        data_dir="/data",
    )
    second = write_run(
        tmp_path,
        "second",
        torch="2.7.1",
        trial_seed=1,
        steps=50,
        recorded={"lr": 3e-4, "momentum": 1.0, "prompts_digest": "2" * 64},
        data_edition="0123456789abcdef",
        data_dir="/elsewhere",
    )
    assert cli.main(["diff", first, second, "--json"]) == 1

    printed = json.loads(capsys.readouterr().out)
    differences = {
        entry["part"]: (entry["first"], entry["second"]) for entry in printed["differences"]
    }
    assert differences == {
        "trial_seed": ([0], [1]),
        "steps": (["default"], ["50"]),
        "hparam lr": ([1e-3], [3e-4]),
        "hparam prompts_digest": (["1" * 64], ["2" * 64]),
        "data edition": (["as published"], ["0123456789abcdef"]),
        "version of PyTorch": (["2.6.0"], ["2.7.1"]),
    }
    assert printed["first"] == {"name": first, "kind": "run"}

    assert cli.main(["diff", first, second]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["hparam", "lr", "0.001", "0.0003"] in rows


def test_what_only_one_run_records_is_named_and_is_no_difference(tmp_path):
    first = write_run(tmp_path, "first", recorded={"lr": 0.1, "new_one": 3})
    second = write_run(tmp_path, "second", recorded={"lr": 0.1})

    comparison = diff(first, second)
    assert comparison.is_equal
    assert comparison.only_in_first == ["hparam new_one"]
    assert comparison.only_in_second == []


def test_sweeps_differ_by_data_set_and_algorithm(tmp_path):
    for trial in range(3):
        for algorithm, rate in (("ERM", 0.1), ("Mixup", 0.1)):
            options = {"algorithm": algorithm, "trial_seed": trial}
            name = f"{algorithm}-{trial}"
            write_run(tmp_path / "first", name, recorded={"lr": rate}, **options)
            if trial < 2:
                rate = 0.2 if algorithm == "Mixup" else rate
                write_run(tmp_path / "second", name, recorded={"lr": rate}, **options)
    write_run(tmp_path / "second", "CORAL", algorithm="CORAL")

    comparison = diff(tmp_path / "first", tmp_path / "second")
    assert [(entry.part, entry.rows) for entry in comparison.differences] == [
        ("algorithm", ()),
        ("trial_seed", ()),
        ("hparam lr", (("PACS", "Mixup"),)),
    ]
    assert values(comparison) == {
        "algorithm": (("ERM", "Mixup"), ("CORAL", "ERM", "Mixup")),
        "trial_seed": ((0, 1, 2), (0, 1)),
        "hparam lr": ((0.1,), (0.2,)),
    }
    assert ["hparam lr", "Mixup on PACS", "0.1", "0.2"] in table_rows(comparison)


def test_a_run_is_compared_with_the_job_that_differs_least(tmp_path):
    run = write_run(tmp_path, "run", trial_seed=1, test_envs=[2], recorded={"lr": 0.3})
    for target in range(4):
        for trial in range(2):
            write_run(tmp_path / "sweep", f"{target}-{trial}", test_envs=[target], trial_seed=trial)

    comparison = diff(run, tmp_path / "sweep")
    assert comparison.nearest_job == str(tmp_path / "sweep" / "2-1")
    assert values(comparison) == {"hparam lr": ((0.3,), (0.1,))}


DECLARED = """
name: x
datasets: [PACS]
algorithms: [CARFT]
trials: 2
steps: 11
hparams: {clip_backbone: tiny, kl_weight: 3}
"""


@pytest.fixture
def declared(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(DECLARED)
    return path


def test_a_run_of_a_declared_sweep_has_no_differences_from_it(declared, tmp_path):
    (job, *_) = sweep_folders.launched(tmp_path / "out", DECLARED)
    hparams = expected_hparams(job.args) | {"amp": "off", "prompts_digest": "d"}
    sweep_folders.record(job, 10, hparams=hparams)

    assert hparams["lr"] == 3e-4  # as "tiny" wants it, and not the data set's default
    assert diff(job.folder, declared).is_equal
    assert diff(tmp_path / "out", declared).is_equal


def test_a_run_differs_from_a_declared_sweep_in_defaults_and_in_what_was_set(declared, tmp_path):
    (job, *_) = sweep_folders.launched(tmp_path / "out", DECLARED)
    hparams = expected_hparams(job.args) | {"kl_weight": 1.0, "weight_decay": 0.5}
    sweep_folders.record(job, 10, hparams=hparams)

    comparison = diff(job.folder, declared)
    assert values(comparison) == {
        "hparam kl_weight": ((1.0,), (3,)),
        "hparam weight_decay": ((0.5,), (0.1,)),
    }
    assert comparison.second == (str(declared), "declared sweep")
    assert "test environments 0, trial 0" in comparison.nearest_job


def test_an_algorithm_of_others_is_compared_by_what_was_set(tmp_path):
    text = "name: x\ndatasets: [Debug28]\nalgorithms: [ERM]\ntrials: 1\nhparams: {lr: 0.5}\n"
    path = tmp_path / "x.yaml"
    path.write_text(text)
    (job, *_) = sweep_folders.launched(tmp_path / "out", text)
    sweep_folders.record(job, 10, hparams={"lr": 0.5, "resnet18": True})
    assert diff(job.folder, path).is_equal

    path.write_text(text.replace("{lr: 0.5}", "{lr: 0.1, resnet18: false}"))
    assert values(diff(job.folder, path)) == {
        "hparam lr": ((0.5,), (0.1,)),
        "hparam resnet18": ((True,), (False,)),
    }


@pytest.mark.parametrize("name", ["nowhere", "empty", "broken.yaml"])
def test_wrong_arguments_have_status_2(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("name: [")

    assert cli.main(["diff", write_run(tmp_path), name]) == 2
    assert name in capsys.readouterr().err
    with pytest.raises(CarftError):
        diff(name, name)


def test_of_many_values_those_of_one_side_are_listed_and_the_others_counted(tmp_path):
    for side, n_trials in (("first", 14), ("second", 12)):
        for trial in range(n_trials):
            write_run(tmp_path / side, str(trial), trial_seed=trial)

    comparison = diff(tmp_path / "first", tmp_path / "second")
    assert table_rows(comparison) == [["trial_seed", "", "12, 13, 12 in both", "12 in both"]]
    assert comparison.differences[0].first == tuple(range(14))
