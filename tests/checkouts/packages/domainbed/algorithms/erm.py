"""A base class whose `update` takes two lists instead of pairs, and a classifier of torch."""

import torch
from domainbed import networks
from torch.nn.functional import cross_entropy


class Algorithm(torch.nn.Module):
    transforms = {}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams

    def update(self, x, y, **kwargs):
        raise NotImplementedError


class ERM(Algorithm):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, self.hparams, stride=4)
        self.classifier = torch.nn.Linear(self.featurizer.n_outputs, num_classes)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)

    def update(self, x, y, **kwargs):
        loss = cross_entropy(self.predict(torch.cat(x)), torch.cat(y))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.classifier(self.featurizer(x))
