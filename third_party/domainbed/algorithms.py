"""The base class of all algorithms, ERM, and how a name becomes a class.

Interface of upstream file domainbed/algorithms.py at b93c22a. A plugin registers an algorithm by
putting its class into this module's globals and its name into ALGORITHMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch

from domainbed import networks
from domainbed.lib import errors, names

# Names in the order of the tables' rows.
ALGORITHMS: list[str] = ["ERM"]


def get_algorithm_class(algorithm_name: str) -> type[Any]:
    """Return the class that this module's globals hold under `algorithm_name`.

    Raises:
        UnknownNameError: no algorithm has that name; the message lists the valid ones, and what to
            use for one that upstream has.
    """
    found = globals().get(algorithm_name)
    if algorithm_name.startswith("_") or not _is_algorithm(found):
        told = _registered_names()
        if algorithm_name in names.ALGORITHMS_NOT_INCLUDED:
            raise names.UnknownNameError(names.algorithm_not_included(algorithm_name, told))
        raise names.UnknownNameError(names.unknown_name("Algorithm", algorithm_name, told))
    return found


def _is_algorithm(candidate: Any) -> TypeGuard[type[Any]]:
    """Imported helpers share the globals, so a class has to offer what train calls."""
    return (
        isinstance(candidate, type)
        and candidate is not Algorithm  # nothing but what others share
        and hasattr(candidate, "update")
        and hasattr(candidate, "predict")
    )


def _registered_names() -> list[str]:
    """The listed names, then those that only stand in the globals; not the abstract base."""
    unlisted = [
        name
        for name, value in globals().items()
        if _is_algorithm(value) and name not in ALGORITHMS and not name.startswith("_")
    ]
    return [*ALGORITHMS, *unlisted]


class Algorithm(torch.nn.Module):
    """A way to learn from several domains. Subclasses implement `update` and `predict`.

    Args:
        input_shape: shape of one input, (channels, height, width) for pictures.
        num_classes: number of labels, which are 0 to num_classes - 1.
        num_domains: number of training domains.
        hparams: the very dict that the data set was built with and that every record holds.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: dict[str, Any],
    ) -> None:
        super().__init__()
        self.hparams = hparams

    def update(
        self,
        minibatches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        unlabeled: Sequence[torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """Take one optimisation step.

        Args:
            minibatches: an (inputs, labels) pair for each training domain.
            unlabeled: inputs from each test domain, in domain adaptation only.

        Returns:
            Numbers to record, averaged by the caller over a checkpoint interval.
        """
        raise NotImplementedError

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, num_classes) for inputs of shape (batch, *input_shape)."""
        raise NotImplementedError


class ERM(Algorithm):
    """Empirical risk minimisation: cross-entropy over the batches of all domains together, Adam.

    The network is chosen by the input's shape (`networks.Featurizer`). Read from hparams: lr,
    weight_decay, nonlinear_classifier, and what the featurizer reads. As upstream's ERM, it does
    not read linear_steps and vit_dropout, which are there for others.

    Raises:
        UsageError: the hyperparameters ask for what is not included, or there is no network for
            the input's shape, or its pretrained weights cannot be read.
        Failure: the pretrained weights could not be downloaded.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: dict[str, Any],
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams.get("lars"):
            raise errors.UsageError(
                [
                    "Hyperparameter lars: the LARS optimiser belongs to ERMPlusPlus, which is not "
                    "included. ERM trains with Adam; set it to false."
                ]
            )
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"]
        )
        # Both names for every weight, as in the state dicts of upstream.
        self.network = torch.nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"]
        )

    def update(
        self,
        minibatches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        unlabeled: Sequence[torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """Take one step on all batches together; return their loss before it."""
        inputs, labels = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
        loss = torch.nn.functional.cross_entropy(self.predict(inputs), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, num_classes)."""
        logits: torch.Tensor = self.network(x)
        return logits
