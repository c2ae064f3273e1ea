"""A base class whose `update` takes two lists instead of pairs."""

import torch


class Algorithm(torch.nn.Module):
    transforms = {}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams

    def update(self, x, y, **kwargs):
        raise NotImplementedError


class ERM(Algorithm):
    pass
