"""One generator for all values, passed on as an object: 2020, SWAD, MIRO."""

import numpy as np


def _hparams(algorithm, dataset, random_state):
    return {
        "data_augmentation": (True, True),
        "resnet18": (False, False),
        "batch_size": (32, int(2 ** random_state.uniform(3, 5.5))),
    }


def default_hparams(algorithm, dataset):
    pairs = _hparams(algorithm, dataset, np.random.RandomState(0))
    return {name: pair[0] for name, pair in pairs.items()}


def random_hparams(algorithm, dataset, seed):
    pairs = _hparams(algorithm, dataset, np.random.RandomState(seed))
    return {name: pair[1] for name, pair in pairs.items()}
