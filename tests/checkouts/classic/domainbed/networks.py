"""Networks of all algorithms: a featurizer by the size of the images, and a classifier."""

import torch
from torch import nn


class SmallNetwork(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 8, kernel_size=4, stride=4)
        self.n_outputs = 8

    def forward(self, x):
        return torch.relu(self.convolution(x)).mean(dim=(2, 3))


def Featurizer(input_shape, hparams):
    if tuple(input_shape[1:]) != (32, 32):
        raise NotImplementedError
    return SmallNetwork(input_shape[0])


def Classifier(in_features, out_features, is_nonlinear=False):
    if is_nonlinear:
        hidden = nn.Linear(in_features, in_features)
        return nn.Sequential(hidden, nn.ReLU(), nn.Linear(in_features, out_features))
    return nn.Linear(in_features, out_features)


def whole_network(input_shape, num_classes, hparams):
    featurizer = Featurizer(input_shape, hparams)
    classifier = Classifier(featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"])
    return nn.Sequential(featurizer, classifier)
