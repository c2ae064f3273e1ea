"""What figures are drawn from, against DomainBed's own selection and sums by hand."""

import json
import random

import collect_sweeps
import numpy as np
import pytest
from domainbed.lib import reporting
from domainbed.model_selection import IIDAccuracySelectionMethod

from domainbed_carft.report import frames
from domainbed_carft.results import collection

ENVIRONMENTS = 4
KEYS = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
STEPS = (0, 25, 50)


def write_records(folder, algorithms=("CARFT", "CLIPFineTune"), trials=3, choices=2):
    """A job folder for each combination, with accuracies on a grid coarse enough for ties."""
    draw = random.Random(0)
    for algorithm in algorithms:
        for trial in range(trials):
            for choice in range(choices):
                for targets in [[t] for t in range(ENVIRONMENTS)] + [[0, 1]]:
                    job = folder / f"{algorithm}-{trial}-{choice}-{targets}"
                    job.mkdir(parents=True)
                    values = ("EmojiStyles", algorithm, targets, trial, choice)
                    lines = [
                        json.dumps(_record(draw, step, dict(zip(KEYS, values)))) + "\n"
                        for step in STEPS
                    ]
                    (job / "results.jsonl").write_text("".join(lines))


def _record(draw, step, args):
    record = {"step": step, "epoch": step / 10, "hparams": {}, "args": args}
    for env in range(ENVIRONMENTS):
        record |= {f"env{env}_{split}_acc": draw.randrange(5) / 4 for split in ("in", "out")}
    if args["algorithm"] == "CARFT":
        record |= {"loss_kl": draw.random(), "context_agreement": draw.random()}
    return record


def recorded(folder):
    """(algorithm, targets, trial, choice, step) -> record, read plainly."""
    return {
        (*(str(record["args"][key]) for key in KEYS[1:]), record["step"]): record
        for path in folder.glob("*/results.jsonl")
        for record in map(json.loads, path.read_text().splitlines())
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write_records(folder)
    return folder


@pytest.fixture(scope="module")
def runs(sweep):
    (group,) = collection.gather([sweep]).groups
    return group.runs


def test_selection_is_domainbeds(sweep, runs):
    outcomes = frames.outcomes(runs, "training-domain")
    assert len(outcomes) == 2 * 3 * ENVIRONMENTS * 2
    selected = outcomes[outcomes["selected"]]
    assert len(selected) == 2 * 3 * ENVIRONMENTS
    groups = reporting.get_grouped_records(reporting.load_records(str(sweep)))
    theirs = {
        (g["algorithm"], g["test_env"], g["trial_seed"]): IIDAccuracySelectionMethod.sweep_acc(
            g["records"]
        )
        for g in groups
    }
    for row in selected.itertuples():
        assert row.out_of_domain == theirs[row.algorithm, row.target, row.trial]


@pytest.mark.parametrize("method", ["training-domain", "oracle", "leave-one-domain-out"])
def test_each_choice_has_the_accuracies_of_its_checkpoint(sweep, runs, method):
    known = recorded(sweep)
    outcomes = frames.outcomes(runs, method)
    # Of the pairs there is but (0, 1), so that no target has all that leave-one-domain-out needs.
    assert outcomes.empty == (method == "leave-one-domain-out")
    for row in outcomes.itertuples():
        place = (row.algorithm, f"[{row.target}]", str(row.trial), str(row.choice))
        record = known[(*place, row.step)]
        training = [e for e in range(ENVIRONMENTS) if e != row.target]
        mean = sum(record[f"env{e}_out_acc"] for e in training) / len(training)
        assert row.in_domain == pytest.approx(mean)
        assert row.out_of_domain == record[f"env{row.target}_in_acc"]
        if method == "oracle":
            assert row.step == STEPS[-1]


def test_checkpoints_are_those_of_the_selected_runs_with_their_drift(sweep, runs):
    known = recorded(sweep)
    outcomes = frames.outcomes(runs, "training-domain")
    chosen = outcomes[outcomes["selected"]].set_index(["algorithm", "target", "trial"])["choice"]
    checkpoints = frames.checkpoints(runs, "training-domain")
    assert len(checkpoints) == 2 * 3 * ENVIRONMENTS * len(STEPS)
    for row in checkpoints.itertuples():
        choice = chosen[row.algorithm, row.target, row.trial]
        record = known[row.algorithm, f"[{row.target}]", str(row.trial), str(choice), row.step]
        assert row.out_of_domain == record[f"env{row.target}_in_acc"]
        for name in frames.DRIFT:
            value = getattr(row, name)
            assert value == record[name] if row.algorithm == "CARFT" else np.isnan(value)


def test_means_over_targets_then_over_trials(runs):
    checkpoints = frames.checkpoints(runs, "training-domain")
    means = frames.over_targets(checkpoints, ["out_of_domain", *frames.DRIFT])
    lines = dict(frames.over_trials(means, "out_of_domain"))
    assert list(lines) == ["CARFT", "CLIPFineTune"]
    assert list(dict(frames.over_trials(means, "loss_kl"))) == ["CARFT"]
    for step in STEPS:
        rows = checkpoints[(checkpoints["algorithm"] == "CARFT") & (checkpoints["step"] == step)]
        trials = [rows[rows["trial"] == t]["out_of_domain"].to_numpy().mean() for t in range(3)]
        line = lines["CARFT"].loc[step]
        assert line["mean"] == pytest.approx(np.mean(trials))
        assert line["error"] == pytest.approx(np.std(trials) / 3**0.5)
        assert line["n"] == 3


def test_what_a_trial_or_a_checkpoint_lacks_for_one_target_has_no_mean_over_them(tmp_path):
    write_records(tmp_path, trials=2, choices=1)
    for path in (tmp_path / "CARFT-1-0-[2]").iterdir():
        path.unlink()
    path = tmp_path / "CARFT-0-0-[2]" / "results.jsonl"
    lines = list(map(json.loads, path.read_text().splitlines()))
    lines[0]["loss_kl"], lines[1]["loss_kl"] = None, 10**400
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    (group,) = collection.gather([tmp_path]).groups
    means = frames.over_targets(frames.outcomes(group.runs, "oracle"), ["out_of_domain"])
    assert means[["algorithm", "trial"]].to_numpy().tolist() == [
        ["CARFT", 0], ["CLIPFineTune", 0], ["CLIPFineTune", 1],
    ]  # fmt: skip
    rows = frames.checkpoints(group.runs, "training-domain")
    means = frames.over_targets(rows, frames.DRIFT)
    known = means[means["algorithm"] == "CARFT"].set_index("step")
    assert known["context_agreement"].notna().all()
    assert known["loss_kl"].notna().tolist() == [False, False, True]


def test_runs_that_left_nothing_out_have_no_target(tmp_path):
    collect_sweeps.write_job(tmp_path, test_envs=[])
    (group,) = collection.gather([tmp_path]).groups
    checkpoints = frames.checkpoints(group.runs, "in-domain")
    assert (checkpoints["target"] == frames.NOTHING).all()
    assert checkpoints["out_of_domain"].isna().all()
    last = recorded(tmp_path)["ERM", "[]", "0", "0", 200]
    mean = sum(last[f"env{e}_out_acc"] for e in range(4)) / 4
    assert checkpoints["in_domain"].iloc[-1] == pytest.approx(mean)
    assert frames.outcomes(group.runs, "in-domain").empty


def test_the_benchmarks_paired_difference_is_that_of_numpy(runs):
    outcomes = frames.outcomes(runs, "training-domain")
    selected = outcomes[outcomes["selected"]].sort_values(["target", "trial"])
    got = collect_sweeps.benchmark("robustness").paired(
        selected, "CARFT", "CLIPFineTune", "out_of_domain"
    )
    a, b = (
        selected[selected.algorithm == name].out_of_domain.to_numpy()
        for name in ("CARFT", "CLIPFineTune")
    )
    assert got.pairs == len(a) == 12
    assert got.mean == pytest.approx((a - b).mean())
    assert got.standard_error == pytest.approx((a - b).std(ddof=1) / np.sqrt(len(a)))
