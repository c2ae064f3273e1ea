"""A configuration of the host's own around the hparams, and `update` all by keyword."""

from collections import UserDict

from domainbed.datasets import get_dataset


class Config(UserDict):
    """A mapping that is no dict, as configuration libraries have them."""


def own_hparams(hparams, args):
    return Config(hparams, swad=False, model="resnet50", test_batchsize=128, lr_mult=10.0)


def make_dataset(args, hparams):
    return get_dataset(args)


def update(algorithm, minibatches, step):
    xs, ys = zip(*minibatches)
    return algorithm.update(x=list(xs), y=list(ys), step=step)
