"""Classes by name in a table, and a lookup that knows nothing else."""

import torch


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams


class ERM(Algorithm):
    pass


_TABLE = {"ERM": ERM}
ALGORITHMS = dict(_TABLE)


def get_algorithm_class(name):
    return _TABLE[name]
