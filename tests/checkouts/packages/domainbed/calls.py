"""A configuration object as hparams, and `update` with keyword arguments."""

from domainbed.datasets import get_dataset
from domainbed.usual_calls import make_algorithm  # noqa: F401


class Config:
    """Only keys and items, like the configuration library sconf."""

    def __init__(self, values):
        self.values = values

    def keys(self):
        return self.values.keys()

    def __getitem__(self, key):
        return self.values[key]

    def __setitem__(self, key, value):
        self.values[key] = value

    def update(self, values):
        self.values.update(values)


def extend_hparams(hparams, args):
    return Config({**hparams, "swad": False, "test_batchsize": 128, "lr_mult": 10.0})


def make_dataset(args, hparams):
    return get_dataset(args)


def update(algorithm, minibatches, step):
    xs, ys = zip(*minibatches)
    return algorithm.update(x=list(xs), y=list(ys), step=step)
