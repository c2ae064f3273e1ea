"""A list of names, classes in the module, `update` with unlabeled images: 2021 to 2024."""

import torch
from torch.nn.functional import cross_entropy

from domainbed import networks

ALGORITHMS = ["ERM", "Clones", "Pairs", "Means"]


def get_algorithm_class(algorithm_name):
    if algorithm_name not in globals():
        raise NotImplementedError(algorithm_name)
    return globals()[algorithm_name]


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.hparams = hparams


class ERM(Algorithm):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network = networks.whole_network(input_shape, num_classes, hparams)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=hparams["lr"])

    def update(self, minibatches, unlabeled=None):
        x, y = map(torch.cat, zip(*minibatches))
        loss = cross_entropy(self.predict(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)


class Clones(ERM):
    """Like Fish, builds a network at every step, and moves the weights half-way to its weights."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.shape = (input_shape, num_classes)

    def update(self, minibatches, unlabeled=None):
        clone = networks.whole_network(*self.shape, self.hparams)
        clone.load_state_dict(self.network.state_dict())
        optimizer = torch.optim.SGD(clone.parameters(), lr=self.hparams["lr"])
        for x, y in minibatches:
            loss = cross_entropy(clone(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved = clone.state_dict()
        state = {name: (old + moved[name]) / 2 for name, old in self.network.state_dict().items()}
        self.network.load_state_dict(state)
        return {"loss": loss.item()}


class Pairs(Algorithm):
    """Like MTL, classifies pairs of feature vectors."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(2 * self.featurizer.n_outputs, num_classes)

    def update(self, minibatches, unlabeled=None):
        x, y = map(torch.cat, zip(*minibatches))
        return {"loss": cross_entropy(self.predict(x), y).item()}

    def predict(self, x):
        features = self.featurizer(x)
        return self.classifier(torch.cat([features, features], dim=1))


class Means(Algorithm):
    """Like CORAL, penalises differences between the features of environments."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(self.featurizer.n_outputs, num_classes)

    def update(self, minibatches, unlabeled=None):
        means = torch.stack([self.featurizer(x).mean(dim=0) for x, _ in minibatches])
        penalty = (means - means.mean(dim=0)).square().mean()
        x, y = map(torch.cat, zip(*minibatches))
        return {"loss": cross_entropy(self.predict(x), y).item(), "penalty": penalty.item()}

    def predict(self, x):
        return self.classifier(self.featurizer(x))
