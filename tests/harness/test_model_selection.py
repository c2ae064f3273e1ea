"""Selection methods."""

from __future__ import annotations

import pytest
from domainbed import model_selection
from domainbed.lib import reporting
from domainbed.lib.query import Q
from domainbed.scripts.collect_results import SELECTION_METHODS

from . import synthetic_records


@pytest.mark.parametrize("kind", synthetic_records.KINDS)
def test_selections_are_upstreams(golden, tmp_path, kind):
    synthetic_records.write_sweep(tmp_path, kind)
    keys = ("trial_seed", "dataset", "algorithm", "test_env")
    groups = {
        tuple(group[key] for key in keys): group["records"]
        for group in reporting.get_grouped_records(reporting.load_records(str(tmp_path)))
    }
    methods = {method.name: method for method in SELECTION_METHODS}
    expected = golden(f"selections_{kind}.json")
    assert len(expected) == 3 * len(groups)
    for entry in expected:
        method = methods[entry["method"]]
        records = groups[tuple(entry[key] for key in keys)]
        ranking = [
            [chosen[0]["args"]["hparams_seed"], outcome["val_acc"], outcome["test_acc"]]
            for outcome, chosen in method.hparams_accs(records)
        ]
        assert ranking == entry["ranking"]
        assert method.sweep_acc(records) == entry["sweep_acc"]


def record(test_envs, in_accs, out_accs, step=0, hparams_seed=0):
    result = {"args": {"test_envs": test_envs, "hparams_seed": hparams_seed}, "step": step}
    for i, (in_acc, out_acc) in enumerate(zip(in_accs, out_accs, strict=True)):
        result |= {f"env{i}_in_acc": in_acc, f"env{i}_out_acc": out_acc}
    return result


def test_training_domain_validation_takes_the_checkpoint_best_on_the_others():
    run = Q(
        [
            record([1], [0.1, 0.9, 0.1], [0.5, 1.0, 0.5]),
            record([1], [0.1, 0.4, 0.1], [0.6, 0.0, 0.8], step=1),
        ]
    )
    outcome = model_selection.IIDAccuracySelectionMethod.run_acc(run)
    assert outcome == {"val_acc": pytest.approx(0.7), "test_acc": 0.4}


def test_the_oracle_takes_the_last_checkpoint():
    run = Q(
        [
            record([0], [0.9, 0.1], [0.9, 0.1], step=5),
            record([0], [0.2, 0.1], [0.3, 0.1], step=10),
        ]
    )
    outcome = model_selection.OracleSelectionMethod.run_acc(run)
    assert outcome == {"val_acc": 0.3, "test_acc": 0.2}


def test_leave_one_out_averages_over_the_second_test_environments():
    jobs = [
        record([0], [0.7, 0.0, 0.0], [0] * 3),
        record([0, 1], [0.0, 0.4, 0.0], [0] * 3),
        record([0, 2], [0.0, 0.0, 0.8], [0] * 3),
    ]
    method = model_selection.LeaveOneOutSelectionMethod
    assert method.run_acc(Q(jobs)) == {"val_acc": pytest.approx(0.6), "test_acc": 0.7}
    assert method.run_acc(Q(jobs[:2])) is None
    assert method.run_acc(Q(jobs[1:])) is None


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_nothing_comes_of_no_records(method):
    assert method.run_acc(Q([])) is None
    assert method.sweep_acc(Q([])) is None
    assert method.hparams_accs(Q([])) == []
