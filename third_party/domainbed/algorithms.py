"""The base class of all algorithms, ERM, and how a name becomes a class.

Interface of upstream file domainbed/algorithms.py at b93c22a. A plugin registers an algorithm by
putting its class into this module's globals and its name into ALGORITHMS.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from domainbed import networks
from domainbed.lib.command_line import UnknownNameError
from domainbed_carft import text
from domainbed_carft.errors import HparamProblem
from domainbed_carft.jobs.job import SWITCH

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

    Raises UnknownNameError, which lists the valid names or says what to use for upstream's others.
    """
    value = globals().get(algorithm_name)
    # Imported helpers share the globals, so a class has to offer what train calls.
    is_trainable = hasattr(value, "update") and hasattr(value, "predict")
    is_public = value is not Algorithm and not algorithm_name.startswith("_")
    if isinstance(value, type) and is_trainable and is_public:
        return value

    if algorithm_name in NOT_INCLUDED:
        raise UnknownNameError(
            f"algorithm {algorithm_name} is not included; use one of {', '.join(ALGORITHMS)}, "
            "or a checkout of facebookresearch/DomainBed"
        )
    raise UnknownNameError(text.unknown("algorithm", algorithm_name, ALGORITHMS))


class Algorithm(torch.nn.Module):
    """A way to learn from several domains. Subclasses implement `update` and `predict`.

    `hparams` are those that the dataset was built with and that every record holds. All other
    methods and attributes here are hooks: `train` asks each algorithm for them, and what this
    class answers suits an algorithm that knows nothing of them.
    """

    # Whether no `update` changes what it predicts: it is evaluated once a job.
    is_constant = False
    # The job's processes if several (`lib.process_group`): each gets its slice of every batch.
    process_group: ProcessGroup | None = None
    # Hparams whose value "auto" stands for what suits the machine where the job begins. What that
    # is stands in `recorded_facts` under the same name; a job that is resumed elsewhere keeps it.
    RESOLVED_HPARAMS: tuple[str, ...] = ()
    # What --hparams may hold beside the hyperparameters: facts that the job is to have.
    EXTRA_HPARAMS: tuple[str, ...] = ()
    # Whether it chooses by a validation loss which weights predict. `at_checkpoint` is then called
    # after one more evaluation of the out-splits, through the test transform. The newest weights
    # count as the best ones.
    wants_validation_loss: bool = False

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int, hparams: Hparams
    ) -> None:
        super().__init__()
        self.hparams = hparams

    @classmethod
    def hparam_problems(
        cls, dataset: str, overrides: Mapping[str, Any]
    ) -> Sequence[str | HparamProblem]:
        """Return the problems of `overrides`, a user's `--hparams`, before anything is loaded.

        `dataset` is the dataset's name. `train` and `sweep` refuse the job if there are any.
        """
        return []

    @classmethod
    def implied_hparams(
        cls,
        dataset: str,
        overrides: Mapping[str, Any],
        random_seed: int | None,
        steps: int | None = None,
    ) -> Hparams:
        """Return hyperparameters that follow from `overrides`, a user's `--hparams`, or `steps`.

        They replace the registry's defaults, or with a `random_seed` its draws. What the user sets
        comes last. `steps`: how many the job trains, None if that is the dataset's default.
        """
        return {}

    @classmethod
    def unused_hparams(cls, names: Sequence[str]) -> Sequence[str]:
        """Return those of `names`, set by `--hparams`, that only other algorithms read."""
        return []

    def recorded_facts(self) -> Mapping[str, Any]:
        """Return what each record says beside the hyperparameters: what it found about its job.

        A job that resumes has to find the same.
        """
        return {}

    @classmethod
    def wanted_images(
        cls, hparams: Hparams
    ) -> tuple[int, tuple[float, ...], tuple[float, ...]] | None:
        """Return how the model wants images, so that they are made that way at once.

        The answer is pixels a side, then mean and standard deviation a channel, of values in
        [0, 1]. None stands for the dataset's own size and normalisation.
        """
        return None

    def indivisible(self) -> str:
        """Return why `process_group` cannot each take the step of a slice; "" if they can.

        They can if the step sums its gradients by `process_group.all_reduce`, each slice weighted
        by its share of the batch, and draws the same in each process.
        """
        return "its step does not add up the gradients of several processes"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> dict[str, float]:
        """Take one optimisation step, on an (inputs, labels) pair of each training domain.

        Return numbers to record, averaged by the caller over a checkpoint interval. `unlabeled`
        inputs are those of upstream's domain adaptation.
        """
        raise NotImplementedError

    def step_on_device(self, minibatches: Minibatches) -> Mapping[str, torch.Tensor]:
        """Take the step of `update`, and return what it measured as tensors without a dimension.

        `train` calls this in place of `update`. A subclass may leave the tensors on its device, so
        that nobody has to wait for them, and must not change them later. Where a subclass overrides
        `update` only, `train` calls this class's version, which returns float64 on the CPU.
        """
        values = self.update(minibatches, None)
        # Python's own numbers first: an algorithm may go on changing a tensor that it returns.
        return {
            name: torch.tensor(float(value), dtype=torch.float64) for name, value in values.items()
        }

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, num_classes) for inputs of shape (batch, *input_shape)."""
        raise NotImplementedError

    def trained_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return what `predict` returns, but by the weights that are trained.

        Override it where others predict, such as an average, and `wants_validation_loss` is set.
        """
        return self.predict(x)

    def at_checkpoint(self, validation_loss: float) -> None:
        """Take the validation loss at a checkpoint, before anything is evaluated or saved.

        `validation_loss`: cross-entropy in nats of `trained_logits`, averaged over the out-split of
        each training environment, then over these. Images go through the test transform. `train`
        calls this if `wants_validation_loss`, and once more at the checkpoint that an interrupted
        job resumes in.
        """

    def training_state(self) -> Any:
        """Return what a resumed run needs beside the attributes that `lib.algorithm_state` stores.

        A subclass returns numbers, texts, tensors, and lists, tuples and dicts of these. It then
        answers for its other attributes. Without an override, `train` says of a run whose algorithm
        has attributes that cannot be stored that it cannot be resumed.
        """
        return None

    def load_training_state(self, stored: Any) -> None:
        """Take back what `training_state` returned in the interrupted run, unless it was None."""
        raise NotImplementedError


# What a value is expected to be, and a check.
_MAX_FLOAT = sys.float_info.max
_AMOUNT = ("a number of at least 0", lambda x: type(x) in (int, float) and 0 <= x <= _MAX_FLOAT)
_VALID_VALUES = {
    "lr": _AMOUNT,
    "weight_decay": _AMOUNT,
    "resnet_dropout": ("a number from 0 to 1", lambda x: type(x) in (int, float) and 0 <= x <= 1),
    **dict.fromkeys(("nonlinear_classifier", "resnet18", "resnet50_augmix", "freeze_bn"), SWITCH),
}


def value_problems(
    hparams: Mapping[str, Any], valid_values: Mapping[str, tuple[str, Any]]
) -> list[HparamProblem]:
    """Say which hyperparameters have a value that is not valid.

    `valid_values` maps a name to what its value is expected to be, and whether a value is.
    """
    return [
        HparamProblem(name, hparams[name], expected)
        for name, (expected, is_valid) in valid_values.items()
        if name in hparams and not is_valid(hparams[name])
    ]


class ERM(Algorithm):
    """Empirical risk minimisation: cross-entropy over the batches of all domains together, Adam.

    The network is chosen by the input's shape (`networks.Featurizer`). Raises CarftError for
    hyperparameters and shapes without a network here, and for missing pretrained weights.
    """

    @classmethod
    def hparam_problems(
        cls, dataset: str, overrides: Mapping[str, Any]
    ) -> list[str | HparamProblem]:
        """Return the problems of ERM's hyperparameters; none for subclasses, which may have others.

        Reads nothing but `overrides`.
        """
        if cls is not ERM:
            return []
        return [*networks.not_included(overrides), *value_problems(overrides, _VALID_VALUES)]

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int, hparams: Hparams
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"]
        )
        # Both names for every weight, as in the state dicts of upstream.
        self.network = torch.nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"]
        )

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> dict[str, float]:
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
