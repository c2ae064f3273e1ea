"""A list of names, classes in the module, `update` with unlabeled images: 2021 to 2024."""

import torch

ALGORITHMS = ["ERM"]


def get_algorithm_class(algorithm_name):
    if algorithm_name not in globals():
        raise NotImplementedError(algorithm_name)
    return globals()[algorithm_name]


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams


class ERM(Algorithm):
    pass
