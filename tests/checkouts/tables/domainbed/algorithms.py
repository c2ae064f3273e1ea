"""A table of classes, a lookup that knows nothing else, and a base class without domains."""

import torch


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, hparams, what_is_trained):
        super().__init__()
        self.hparams = hparams
        self.what_is_trained = what_is_trained


class ERM(Algorithm):
    pass


_TABLE = {"ERM": ERM}
ALGORITHMS = dict(_TABLE)


def get_algorithm_class(name):
    return _TABLE[name]
