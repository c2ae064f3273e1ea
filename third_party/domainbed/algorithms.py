"""The base class of all algorithms, ERM, and the lookup of algorithms by name.

Interface of upstream file domainbed/algorithms.py at b93c22a. A plugin registers an algorithm by
putting its class into this module's globals and its name into ALGORITHMS.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from domainbed import hparams_registry, networks
from domainbed.lib.command_line import UnknownNameError
from domainbed_carft import suggestions
from domainbed_carft.images.dataset_facts import DatasetFacts
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.jobs.hparams import (
    SWITCH,
    ResolvedHparams,
    find_invalid,
    resolve_from_registry,
)

if TYPE_CHECKING:  # which imports this module
    from domainbed.lib.process_group import ProcessGroup

Minibatches = Sequence[tuple[torch.Tensor, torch.Tensor]]
Unlabeled = Sequence[torch.Tensor] | None
Hparams = dict[str, Any]

# Names in the order of the tables' rows.
ALGORITHMS: list[str] = ["ERM"]

# Upstream's algorithms at b93c22a that this implementation lacks, in the order of its list.
NOT_INCLUDED = tuple(
    "ERMPlusPlus Fish IRM GroupDRO Mixup MLDG CORAL MMD DANN CDANN MTL SagNet ARM VREx RSC SD "
    "ANDMask SANDMask IGA SelfReg Fishr TRM IB_ERM IB_IRM CAD CondCAD Transfer CausIRL_CORAL "
    "CausIRL_MMD EQRM RDM ADRMX URM".split()
)


def get_algorithm_class(algorithm_name: str) -> type[Any]:
    """Return the class that this module's globals hold under `algorithm_name`.

    Raises:
        UnknownNameError: there is no such algorithm; the message lists the valid names.
    """
    value = globals().get(algorithm_name)
    # Imported helpers share the globals, so a class must have the methods that `train` calls.
    is_trainable = hasattr(value, "update") and hasattr(value, "predict")
    is_public = value is not Algorithm and not algorithm_name.startswith("_")
    if isinstance(value, type) and is_trainable and is_public:
        return value

    if algorithm_name in NOT_INCLUDED:
        raise UnknownNameError(
            f"algorithm {algorithm_name} is not included; use one of {', '.join(ALGORITHMS)}, "
            "or a checkout of facebookresearch/DomainBed"
        )
    raise UnknownNameError(suggestions.unknown("algorithm", algorithm_name, ALGORITHMS))


class Algorithm(torch.nn.Module):
    """Base class of algorithms. Subclasses implement `update` and `predict`.

    All other methods and attributes are hooks that `train` calls or reads. Their defaults suit an
    algorithm that does not override them.

    Args:
        input_shape: (channels, height, width) of the images.
        num_classes: number of classes.
        num_domains: number of training environments.
        hparams: hyperparameters.
        dataset_facts: facts of the dataset, of which the plugin needs the normalisation if the
            hyperparameter `clip_backbone` replaces the network by a CLIP model.

    Attributes:
        hparams: the hyperparameters that the dataset was built with and that every record holds.
        is_constant: True if `update` never changes the predictions, so that one evaluation per job
            is enough.
        process_group: the processes that train the job together, each on its slice of every batch
            (`lib.process_group`); None if there is one.
        uses_validation_loss: True if a validation loss decides which weights predict. `train` then
            evaluates the out-splits once more, through the test transform, and calls
            `at_checkpoint`. The newest weights count as the best ones.
    """

    is_constant = False
    process_group: ProcessGroup | None = None
    uses_validation_loss: bool = False

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Hparams,
        dataset_facts: DatasetFacts | None = None,
    ) -> None:
        super().__init__()
        self.hparams = hparams

    @classmethod
    def resolve_hparams(
        cls,
        dataset: str,
        given: Mapping[str, Any],
        random_seed: int | None = None,
        steps: int | None = None,
    ) -> ResolvedHparams:
        """Return the hyperparameters of a job, and their problems, before anything is loaded.

        The default asks `hparams_registry`, as upstream does.

        Args:
            dataset: name of the dataset.
            given: values of `--hparams`.
            random_seed: seed of random draws; None for the defaults.
            steps: number of training steps; None for the dataset's default.

        Returns:
            The hyperparameters. If they have problems, `train` and `sweep` refuse the job.
        """
        return resolve_from_registry(hparams_registry, cls.__name__, dataset, given, random_seed)

    def recorded_facts(self) -> Mapping[str, Any]:
        """Return facts about the job's data, device and files, which are added to each record.

        A resumed job must find the same facts. A hyperparameter with the value "auto" and a fact of
        the same name is resolved on the machine where the job begins: if the job is resumed
        elsewhere, its value is the recorded fact.
        """
        return {}

    def training_only_names(self) -> list[str]:
        """Return the names in the state dict that prediction does not need.

        A weights file contains them next to the state dict.
        """
        return []

    @classmethod
    def image_format(cls, hparams: Hparams) -> Preprocessing | None:
        """Return the images that the model expects, for an algorithm that takes `dataset_facts`.

        Args:
            hparams: the job's hyperparameters.

        Returns:
            Size, resizing and normalisation of the images; None for the dataset's own.
        """
        return None

    def single_process_reason(self) -> str:
        """Return the reason why several processes cannot train this algorithm together.

        They can if the step sums its gradients by `process_group.all_reduce`, each slice weighted
        by its share of the batch, and draws the same random numbers in each process.

        Returns:
            The reason, or "" if several processes can.
        """
        return "its step does not add up the gradients of several processes"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> dict[str, float]:
        """Take one optimization step.

        Args:
            minibatches: an (inputs, labels) pair of each training domain.
            unlabeled: inputs of upstream's domain adaptation.

        Returns:
            Numbers to record by name; the caller averages them over a checkpoint interval.
        """
        raise NotImplementedError

    def step_on_device(self, minibatches: Minibatches) -> Mapping[str, torch.Tensor]:
        """Take the step of `update` without waiting for the device; `train` calls this method.

        If a subclass overrides `update` only, `train` calls the base class's version, which returns
        float64 tensors on the CPU.

        Args:
            minibatches: an (inputs, labels) pair of each training domain.

        Returns:
            Numbers to record by name, as tensors of shape (). They can stay on the device and must
            not be changed later.
        """
        values = self.update(minibatches, None)
        # Converted to Python numbers first: an algorithm may later change a tensor it returned.
        return {
            name: torch.tensor(float(value), dtype=torch.float64) for name, value in values.items()
        }

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, num_classes) for inputs of shape (batch, *input_shape)."""
        raise NotImplementedError

    def trained_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of the weights being trained.

        Override this method if `uses_validation_loss` is set and `predict` uses other weights, such
        as an average.

        Args:
            x: inputs of shape (batch, *input_shape).

        Returns:
            Logits of shape (batch, num_classes).
        """
        return self.predict(x)

    def at_checkpoint(self, validation_loss: float) -> None:
        """Handle the validation loss at a checkpoint, before anything is evaluated or saved.

        `train` calls this method if `uses_validation_loss` is set. A job that was interrupted in a
        checkpoint calls it once more for this checkpoint.

        Args:
            validation_loss: cross-entropy of `trained_logits` in nats, averaged over the out-split
                of each training environment, then over these environments. The images go through
                the test transform.
        """

    def training_state(self) -> Any:
        """Return the state that a resumed run needs and `lib.algorithm_state` cannot store.

        Without this override, a run whose algorithm has attributes that cannot be stored prints a
        warning and cannot be resumed. With it, such attributes are up to the subclass.

        Returns:
            Numbers, texts, tensors, and lists, tuples and dicts of these; or None.
        """
        return None

    def load_training_state(self, stored: Any) -> None:
        """Restore the state that `training_state` returned in the interrupted run.

        Args:
            stored: the state; this method is not called if it is None.
        """
        raise NotImplementedError


# Name -> (expected value in words, check of a value).
_MAX_FLOAT = sys.float_info.max
_AMOUNT = ("a number of at least 0", lambda x: type(x) in (int, float) and 0 <= x <= _MAX_FLOAT)
_VALID_VALUES = {
    "lr": _AMOUNT,
    "weight_decay": _AMOUNT,
    "resnet_dropout": ("a number from 0 to 1", lambda x: type(x) in (int, float) and 0 <= x <= 1),
    **dict.fromkeys(("nonlinear_classifier", "resnet18", "resnet50_augmix", "freeze_bn"), SWITCH),
}


class ERM(Algorithm):
    """Empirical risk minimization: cross-entropy over the batches of all domains, with Adam.

    The network is chosen by the input's shape (`networks.Featurizer`), unless the hyperparameter
    `clip_backbone` names a CLIP model.

    Raises:
        CarftError: there is no network for these hyperparameters or this input shape, or the
            pretrained weights are missing.
    """

    @classmethod
    def resolve_hparams(
        cls,
        dataset: str,
        given: Mapping[str, Any],
        random_seed: int | None = None,
        steps: int | None = None,
    ) -> ResolvedHparams:
        """Return a job's hyperparameters, of which subclasses do not check ERM's own.

        Args:
            dataset: name of the dataset.
            given: values of `--hparams`.
            random_seed: seed of random draws; None for the defaults.
            steps: number of training steps; None for the dataset's default.
        """
        resolved = super().resolve_hparams(dataset, given, random_seed, steps)
        if cls is not ERM:
            return resolved
        problems = [*networks.find_missing_parts(given), *find_invalid(given, _VALID_VALUES)]
        return replace(resolved, problems=[*resolved.problems, *problems])

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Hparams,
        dataset_facts: DatasetFacts | None = None,
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams, dataset_facts)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"]
        )
        # Every weight has two names, as in upstream's state dicts.
        self.network = torch.nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"]
        )

    def recorded_facts(self) -> Mapping[str, Any]:
        """Return the facts of the CLIP model that replaces the network, none otherwise."""
        return getattr(self.featurizer, "facts", {})

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> dict[str, float]:
        """Take one step on all batches together and return the loss before the step.

        Args:
            minibatches: an (inputs, labels) pair of each training domain.
            unlabeled: not used.
        """
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
