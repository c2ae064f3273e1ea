"""Selection methods."""

from __future__ import annotations

import pytest
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


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_nothing_comes_of_no_records(method):
    assert method.run_acc(Q([])) is None
    assert method.sweep_acc(Q([])) is None
    assert method.hparams_accs(Q([])) == []
