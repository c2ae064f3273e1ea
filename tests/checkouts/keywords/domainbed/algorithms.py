"""A base class that knows of no domains, and asks for what is trained: 2023."""

import torch

ALGORITHMS = ["ERM"]


def get_algorithm_class(algorithm_name):
    if algorithm_name not in globals():
        raise NotImplementedError(algorithm_name)
    return globals()[algorithm_name]


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, hparams, what_is_trained):
        super().__init__()
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.hparams = hparams
        self.what_is_trained = what_is_trained


class ERM(Algorithm):
    pass
