"""The arguments for which golden_from_upstream.py computes golden values."""

from __future__ import annotations

from typing import Any

SEED_HASH_ARGS: list[list[Any]] = [
    [0],
    [0, 0],
    [2, 5],
    [123, "lr"],
    ["PACS", "ERM", [0], 0, 0],
    ["PACS", "CARFT", [1, 3], 7, 2],
    ["naïve", 0.5, None, True],
]

SWEEPS: dict[str, dict[str, Any]] = {
    "leave_one_out": {
        "n_trials": 2,
        "dataset_names": ["Debug28", "PACS"],
        "algorithms": ["ERM", "CARFT"],
        "n_hparams_from": 0,
        "n_hparams": 2,
        "steps": None,
        "data_dir": "/data",
        "task": "domain_generalization",
        "holdout_fraction": 0.2,
        "single_test_envs": False,
        "hparams": None,
    },
    "single_test_envs": {
        "n_trials": 1,
        "dataset_names": ["DomainNet", "TerraIncognita"],
        "algorithms": ["CARFT"],
        "n_hparams_from": 3,
        "n_hparams": 5,
        "steps": 1001,
        "data_dir": "/my data/it's here/",
        "task": "domain_generalization",
        "holdout_fraction": 0.1,
        "single_test_envs": True,
        "hparams": '{"lr": 1e-05, "contexts": "a photo of a {}"}',
    },
}

HPARAMS_DATASETS = ("Debug28", "PACS", "DomainNet", "SVIRO", "SomeoneElsesData")
HPARAMS_SEEDS = ((1, 0), (1, 1), (2, 0), (19, 2))

# (items of each environment, test_envs, trial_seed, holdout_fraction, uda_holdout_fraction)
SPLITS: list[tuple[list[int], list[int], int, float, float]] = [
    ([16, 16, 16], [0], 0, 0.2, 0.0),
    ([7, 40, 33, 21], [1, 3], 2, 0.25, 0.5),
    ([2048, 2344, 1670, 3929], [2], 1, 0.2, 0.1),
]

# Networks by name: (shape of an input, hyperparameters other than the defaults).
NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mnist, 1 channel": ((1, 28, 28), {}),
    "mnist, 2 channels, nonlinear": ((2, 28, 28), {"nonlinear_classifier": True}),
    "resnet18": ((3, 224, 224), {"resnet18": True, "resnet50_augmix": False}),
    "resnet18, 5 channels": ((5, 224, 224), {"resnet18": True, "resnet50_augmix": False}),
    "resnet50": ((3, 224, 224), {"resnet50_augmix": False}),
    "resnet50_augmix": ((3, 224, 224), {}),
    "resnet50_augmix over resnet18": ((3, 224, 224), {"resnet18": True}),
}

# Networks of which a few steps of ERM are computed, and how their hyperparameters differ.
STEPS: dict[str, dict[str, Any]] = {
    "mnist, 1 channel": {"weight_decay": 0.1},
    "mnist, 2 channels, nonlinear": {"lr": 0.01},
    "resnet18": {"freeze_bn": True},
}
