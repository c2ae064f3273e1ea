"""A fork that chooses among CLIP models itself."""

from torch import nn


class Pixels(nn.Module):
    n_outputs = 3

    def forward(self, x):
        return x.mean(dim=(2, 3))


def Featurizer(input_shape, hparams):
    assert hparams["clip_backbone"]  # a name of this fork
    return Pixels()


def Classifier(in_features, out_features, is_nonlinear=False):
    return nn.Linear(in_features, out_features)


def whole_network(input_shape, num_classes, hparams):
    return nn.Sequential(Featurizer(input_shape, hparams), Classifier(3, num_classes))
