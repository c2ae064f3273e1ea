"""The method under check: its class, built on the small CLIP model, with noise as images."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.own_methods import MethodFile
from domainbed_carft.method import own_methods
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.algorithms import CLASSES
from domainbed_carft.method.resolution import complete
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import load_run
from domainbed_carft.suggestions import unknown

DATASET = "EmojiStyles"  # its defaults suit a few steps with the small CLIP model
SHAPE = (3, 32, 32)
CLASS_NAMES = ["dog", "cat", "owl"]
CONTEXTS = [f"a photo of a {{}} in style {number}." for number in range(28)]  # enough for FDAlign
DOMAINS = 2
IMAGES = 4  # per domain in a batch
MICRO_BATCH = 3  # does not divide a batch evenly
LP_STEPS = 2

Minibatches = list[tuple[Tensor, Tensor]]


class Inapplicable(Exception):
    """A check does not apply to the method; the message is the reason."""


def minibatches(seed: int = 0, dtype: torch.dtype = torch.float32) -> Minibatches:
    """Return noise images and labels of each domain."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(DOMAINS, IMAGES, *SHAPE, generator=generator).to(dtype)
    labels = torch.randint(len(CLASS_NAMES), (DOMAINS, IMAGES), generator=generator)
    return [*zip(images, labels)]


def move_batches(batches: Minibatches, device: torch.device | str) -> Minibatches:
    """Move the minibatches to a device."""
    return [(x.to(device), y.to(device)) for x, y in batches]


def take_step(algorithm: CLIPAlgorithm, seed: int, batches: Minibatches) -> dict[str, float]:
    """Take a step with the random numbers of its seed, and finish a checkpoint if one is due."""
    torch.manual_seed(seed)
    measurements = algorithm.update(batches)
    if algorithm.uses_validation_loss:
        algorithm.at_checkpoint(1.0 + 0.1 * seed)
    return measurements


def get_gradients(algorithm: CLIPAlgorithm) -> dict[str, Tensor]:
    """Return parameter name -> gradient of the last step."""
    return {name: p.grad for name, p in algorithm.named_parameters() if p.grad is not None}


def find_classes(method: str | Path | type[CLIPAlgorithm]) -> list[type[CLIPAlgorithm]]:
    """Return the algorithm classes of an algorithm's name, a Python file, or a class.

    Raises CarftError for an unknown name, and for a file that contains no usable method.
    """
    if isinstance(method, type):
        if not issubclass(method, CLIPAlgorithm):
            raise CarftError(
                f"the class {method.__name__} is not an algorithm; expected a subclass of "
                "CLIPAlgorithm"
            )
        return [method]
    if str(method) in CLASSES:
        return [CLASSES[str(method)]]
    if not str(method).endswith(".py"):
        problem = unknown("algorithm", str(method), CLASSES)
        raise CarftError(
            f"{problem}; to check your own method, pass its file, such as my_method.py"
        )

    file = MethodFile(Path(method).absolute(), "METHOD")
    loaded = own_methods.load(ALGORITHMS, [file])
    raise_for(loaded.problems)
    return [*loaded.classes.values()]


def find_file(algorithm_class: type[CLIPAlgorithm]) -> str:
    """Return the file that defines a class, or "" for a class defined in a notebook."""
    return getattr(sys.modules[algorithm_class.__module__], "__file__", None) or ""


class Subject:
    """An algorithm class with the hyperparameters for checking it.

    Attributes:
        algorithm_class: class of the method.
        name: name of the class.
        given_hparams: hyperparameters set by the user.
        hparams: complete hyperparameters: the defaults for ``DATASET``, overridden by values for
            a few steps on noise, overridden by the user's.
    """

    def __init__(
        self, algorithm_class: type[CLIPAlgorithm], hparams: Mapping[str, Any] = {}
    ) -> None:
        self.algorithm_class = algorithm_class
        self.name = algorithm_class.__name__
        self.given_hparams = dict(hparams)
        defaults = complete(algorithm_class, {"class_names": f"dataset:{DATASET}"})
        defaults["lp_steps"] = min(LP_STEPS, defaults.get("lp_steps", 0))
        on_noise = {"class_names": CLASS_NAMES, "contexts": CONTEXTS, "amp": "off"}
        self.hparams: dict[str, Any] = {**defaults, **on_noise, **hparams}
        self._start: dict[bool, CLIPAlgorithm] = {}
        self._trained: dict[bool, CLIPAlgorithm] = {}

    def build(self, hparams: Mapping[str, Any] | None = None, seed: int = 0) -> CLIPAlgorithm:
        """Build the algorithm with ``hparams`` (by default ``self.hparams``), printing nothing."""
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            return self.algorithm_class(
                SHAPE, len(CLASS_NAMES), DOMAINS, self.hparams if hparams is None else hparams
            )

    def build_exact(self, **hparams: Any) -> CLIPAlgorithm:
        """Build the algorithm for `arithmetic.float64`, without dropout and gradient clipping.

        Call this outside the `float64` context, in which weights cannot be read from files.
        """
        unclipped = {**self.hparams, "lora_dropout": 0.0, "grad_clip": 0.0}
        return self.build({**unclipped, **hparams}).double()

    def get_initial(self, exact: bool = False) -> CLIPAlgorithm:
        """Return a copy of the algorithm before its first step, built in float64 if ``exact``."""
        if exact not in self._start:
            self._start[exact] = self.build_exact() if exact else self.build()
        return copy.deepcopy(self._start[exact])

    def get_trained(self, exact: bool = False) -> CLIPAlgorithm:
        """Return a copy of the algorithm two steps into its last phase, in float64 if ``exact``."""
        if exact not in self._trained:
            algorithm = self.get_initial(exact)
            dtype = torch.float64 if exact else torch.float32
            with float64() if exact else contextlib.nullcontext():
                for seed in range(algorithm.lp_steps + 2):
                    take_step(algorithm, seed, minibatches(seed, dtype))
            self._trained[exact] = algorithm
        return copy.deepcopy(self._trained[exact])

    def save_and_load_run(self, algorithm: CLIPAlgorithm) -> Run:
        """Save the algorithm in a weights file, as training does, and load the file as a run."""
        content = {
            "args": {"algorithm": self.name, "dataset": DATASET, "test_envs": [0]},
            "model_input_shape": SHAPE,
            "model_num_classes": len(CLASS_NAMES),
            "model_num_domains": DOMAINS,
            "model_hparams": algorithm.hparams,
            **algorithm.recorded_facts(),
            "model_dict": algorithm.state_dict(),
            "training_only_names": algorithm.training_only_names(),
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.pkl"
            torch.save(content, file)
            # The class can have the name of another algorithm, or come from no registered file.
            with mock.patch.dict(CLASSES, {self.name: self.algorithm_class}):
                return load_run(file, device="cpu")
