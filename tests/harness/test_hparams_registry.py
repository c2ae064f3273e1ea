"""Hyperparameters."""

from __future__ import annotations

import json

import numpy as np
from domainbed import hparams_registry
from domainbed.lib import misc


def test_defaults_and_draws_are_upstreams(golden):
    for dataset, expected in golden("hparams.json").items():
        assert hparams_registry.default_hparams("ERM", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("ERM", dataset, seed) == draw["hparams"]


def test_values_are_plain():
    for seed in range(20):
        drawn = hparams_registry.random_hparams("ERM", "PACS", seed)
        assert {type(value) for value in drawn.values()} <= {bool, int, float}
        assert json.loads(json.dumps(drawn)) == drawn


def test_numpy_values_become_plain(monkeypatch):
    def more(algorithm, dataset, random_seed):
        return {"n": (np.int64(1), np.int64(random_seed)), "name": (algorithm, dataset)}

    monkeypatch.setattr(hparams_registry, "_hparams", more)
    assert hparams_registry.default_hparams("A", "D") == {"n": 1, "name": "A"}
    drawn = hparams_registry.random_hparams("A", "D", 7)
    assert drawn == {"n": 7, "name": "D"}
    assert type(drawn["n"]) is int
