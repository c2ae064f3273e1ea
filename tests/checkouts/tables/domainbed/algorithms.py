"""A lookup in a table of classes, and a base class without a number of domains."""

import torch


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, hparams, trained_part):
        super().__init__()
        self.hparams = hparams
        self.trained_part = trained_part


class ERM(Algorithm):
    pass


_TABLE = {"ERM": ERM}
ALGORITHMS = dict(_TABLE)


def get_algorithm_class(name):
    return _TABLE[name]
