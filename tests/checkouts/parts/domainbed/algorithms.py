"""A base class with attributes for the parts, and a schedule stepped by `train`: 2024."""

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
        self.optimizer = self.scheduler = None
        self.featurizer = self.classifier = None

    def scheduler_step(self):
        if self.scheduler:
            self.scheduler.step()

    def learning_rate(self):
        return self.scheduler.get_last_lr()[0] if self.scheduler else self.hparams["lr"]


class ERM(Algorithm):
    pass
