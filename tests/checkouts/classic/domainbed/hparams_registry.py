"""Pairs of a default and a random value."""

import numpy as np


def _hparams(algorithm, dataset, random_seed):
    state = np.random.RandomState(random_seed)
    return {
        "data_augmentation": (True, True),
        "lr": (5e-5, float(10 ** state.uniform(-5, -3.5))),
        "nonlinear_classifier": (False, False),
        "resnet_dropout": (0.0, float(state.choice([0.0, 0.1, 0.5]))),
        "batch_size": (32, int(2 ** state.uniform(3, 5.5))),
    }


def default_hparams(algorithm, dataset):
    return {name: pair[0] for name, pair in _hparams(algorithm, dataset, 0).items()}


def random_hparams(algorithm, dataset, seed):
    return {name: pair[1] for name, pair in _hparams(algorithm, dataset, seed).items()}
