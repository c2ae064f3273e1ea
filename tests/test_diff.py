"""``carft diff``: differences between two runs, and its exit status."""

import json

import collect_sweeps

from domainbed_carft import cli
from domainbed_carft.jobs.differences import diff


def write_run(folder, name="job", torch="2.6.0", **facts):
    job = collect_sweeps.write_job(folder, name, **facts)
    (job / "out.txt").write_text(f"\tPyTorch: {torch}\n\tNumPy: 2.0.1\n")
    return str(job)


def test_diff_lists_settings_versions_data_and_prompts(tmp_path, capsys):
    recorded = {"lr": 1e-3, "momentum": 1, "amp": "bf16", "prompts_digest": "1" * 64}
    facts = {"recorded": recorded, "data_edition": "as published", "data_dir": "/data"}
    first = write_run(tmp_path, "first", **facts)
    recorded = {"lr": 3e-4, "momentum": 1.0, "amp": "off", "prompts_digest": "2" * 64}
    facts = {"recorded": recorded, "data_edition": "0123456789abcdef", "data_dir": "/elsewhere"}
    second = write_run(tmp_path, "second", torch="2.7.1", trial_seed=1, steps=50, **facts)

    assert cli.main(["diff", first, second, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["first"], printed["second"]) == (first, second)
    assert printed["differences"] == {
        "trial_seed": [0, 1],
        "steps": ["default", "50"],
        "hparam lr": [1e-3, 3e-4],
        "hparam amp": ["bf16", "off"],
        "fact prompts_digest": ["1" * 64, "2" * 64],
        "data edition": ["as published", "0123456789abcdef"],
        "version of PyTorch": ["2.6.0", "2.7.1"],
    }
    assert cli.main(["diff", first, second]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"A: {first}", f"B: {second}"]
    assert ["hparam", "lr", "0.001", "0.0003"] in map(str.split, lines)


def test_diff_ignores_keys_recorded_by_one_run(tmp_path):
    first = write_run(tmp_path, "first", recorded={"lr": 0.1, "new_one": 3})
    second = write_run(tmp_path, "second", recorded={"lr": 0.1})
    differences = diff(first, second)
    assert differences.is_equal
    assert (differences.only_in_first, differences.only_in_second) == (["hparam new_one"], [])
