"""Selection and paired differences against DomainBed's own code and numpy."""

import json
import random

import numpy as np
import pytest
from domainbed.lib import reporting
from domainbed.model_selection import IIDAccuracySelectionMethod

from domainbed_carft import results
from domainbed_carft.errors import CarftError

ENVIRONMENTS = 4


def write_records(folder, algorithms=("CARFT", "CLIPFineTune"), trials=3, hparams_seeds=2):
    """A job folder for each combination, with accuracies on a grid coarse enough for ties."""
    draw = random.Random(0)
    for algorithm in algorithms:
        for trial in range(trials):
            for seed in range(hparams_seeds):
                for targets in [[t] for t in range(ENVIRONMENTS)] + [[0, 1]]:
                    job = folder / f"{algorithm}-{trial}-{seed}-{targets}"
                    job.mkdir(parents=True)
                    with (job / "results.jsonl").open("w") as file:
                        for step in (0, 25, 50):
                            record = {"step": step, "epoch": step / 10, "loss": draw.random()}
                            for env in range(ENVIRONMENTS):
                                for split in ("in", "out"):
                                    record[f"env{env}_{split}_acc"] = draw.randrange(5) / 4
                            record["hparams"] = {}
                            record["args"] = {
                                "dataset": "EmojiStyles", "algorithm": algorithm,
                                "test_envs": targets, "trial_seed": trial, "hparams_seed": seed,
                            }  # fmt: skip
                            file.write(json.dumps(record) + "\n")


def test_selection_is_domainbeds(tmp_path):
    write_records(tmp_path)
    selected = results.select(results.load(tmp_path))
    assert len(selected) == 2 * 3 * ENVIRONMENTS
    groups = reporting.get_grouped_records(reporting.load_records(str(tmp_path)))
    theirs = {
        (g["algorithm"], g["test_env"], g["trial_seed"]): IIDAccuracySelectionMethod.sweep_acc(
            g["records"]
        )
        for g in groups
    }
    for row in selected.itertuples():
        assert row.target == theirs[row.algorithm, row.test_env, row.trial_seed]


def test_paired_difference_is_that_of_numpy(tmp_path):
    write_records(tmp_path)
    selected = results.select(results.load(tmp_path))
    got = results.paired(selected, "CARFT", "CLIPFineTune")
    ordered = selected.sort_values(["test_env", "trial_seed"])
    a, b = (
        ordered[ordered.algorithm == name].target.to_numpy() for name in ("CARFT", "CLIPFineTune")
    )
    assert got.pairs == len(a) == 12
    assert got.mean == pytest.approx((a - b).mean())
    assert got.standard_error == pytest.approx((a - b).std(ddof=1) / np.sqrt(len(a)))


def test_cut_lines_are_named_and_repeated_steps_counted_once(tmp_path, caplog):
    write_records(tmp_path, trials=1, hparams_seeds=1)
    before = results.load(tmp_path)
    path = sorted(tmp_path.glob("*/results.jsonl"))[0]
    text = path.read_text()
    path.write_text(text + text + text[:50])
    after = results.load(tmp_path)
    assert len(after) == len(before)
    assert f"{path}, line 7 is no whole record" in caplog.text


def test_jobs_that_differ_in_more_than_their_seeds_are_not_mixed(tmp_path):
    write_records(tmp_path, trials=1, hparams_seeds=1)
    copy = tmp_path / "the same with other hparams"
    copy.mkdir()
    text = (tmp_path / "CARFT-0-0-[1]" / "results.jsonl").read_text()
    (copy / "results.jsonl").write_text(text)
    with pytest.raises(CarftError, match=r"2 jobs of the same .*CARFT-0-0-\[1\], the same with"):
        results.load(tmp_path)


def test_no_records_is_an_empty_frame(tmp_path):
    assert results.load(tmp_path).empty
