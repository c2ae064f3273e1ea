"""The method under check: its class, built on the small CLIP, with noise for images."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.own_methods import MethodFile
from domainbed_carft.method import own_methods
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.algorithms import CLASSES
from domainbed_carft.text import unknown

DATASET = "EmojiStyles"  # whose defaults are for few steps with the small CLIP
SHAPE = (3, 32, 32)
CLASS_NAMES = ["dog", "cat", "owl"]
CONTEXTS = [f"a photo of a {{}} in style {number}." for number in range(28)]  # enough for FDAlign
DOMAINS = 2
IMAGES = 4  # of each domain in a batch
MICRO_BATCH = 3  # which does not divide a batch
LP_STEPS = 2

Minibatches = list[tuple[Tensor, Tensor]]


class Inapplicable(Exception):
    """A check does not apply to the method; the message says why."""


def minibatches(seed: int = 0, dtype: torch.dtype = torch.float32) -> Minibatches:
    """Noise images and labels of each domain."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(DOMAINS, IMAGES, *SHAPE, generator=generator).to(dtype)
    labels = torch.randint(len(CLASS_NAMES), (DOMAINS, IMAGES), generator=generator)
    return [*zip(images, labels)]


def moved(batches: Minibatches, device: torch.device | str) -> Minibatches:
    """The minibatches on a device."""
    return [(x.to(device), y.to(device)) for x, y in batches]


def take_step(algorithm: CLIPAlgorithm, seed: int, batches: Minibatches) -> dict[str, float]:
    """Take a step with the random numbers of its seed, and end a checkpoint where one is due."""
    torch.manual_seed(seed)
    measurements = algorithm.update(batches)
    if algorithm.uses_validation_loss:
        algorithm.at_checkpoint(1.0 + 0.1 * seed)
    return measurements


def gradients_of(algorithm: CLIPAlgorithm) -> dict[str, Tensor]:
    """Name -> gradient of the last step."""
    return {name: p.grad for name, p in algorithm.named_parameters() if p.grad is not None}


def find_classes(method: str | Path | type[CLIPAlgorithm]) -> list[type[CLIPAlgorithm]]:
    """The classes of an algorithm's name, of a Python file, or of a class.

    Raises CarftError for an unknown name, and for a file that holds no usable method.
    """
    if isinstance(method, type):
        if not issubclass(method, CLIPAlgorithm):
            raise CarftError(
                f"the class {method.__name__} is not an algorithm, expected a class that derives "
                "from CLIPAlgorithm"
            )
        return [method]
    if str(method) in CLASSES:
        return [CLASSES[str(method)]]
    if not str(method).endswith(".py"):
        problem = unknown("algorithm", str(method), CLASSES)
        raise CarftError(
            f"{problem}; for a method of your own, pass its file, such as my_method.py"
        )

    file = MethodFile(Path(method).absolute(), "METHOD")
    loaded = own_methods.load(ALGORITHMS, [file])
    raise_for(loaded.problems)
    return [*loaded.classes.values()]


def file_of(algorithm_class: type[CLIPAlgorithm]) -> str:
    """Return the file of a class, "" if it was defined in a notebook."""
    return getattr(sys.modules[algorithm_class.__module__], "__file__", None) or ""


class Subject:
    """A method's class with the hyperparameters under which it is checked.

    Attributes:
        algorithm_class: the class of the method.
        name: the name of that class.
        given_hparams: the hyperparameters that the user has set.
        hparams: its complete hyperparameters: the defaults of ``DATASET``, then what suits a few
            steps on noise, then the user's own.
    """

    def __init__(
        self, algorithm_class: type[CLIPAlgorithm], hparams: Mapping[str, Any] = {}
    ) -> None:
        self.algorithm_class = algorithm_class
        self.name = algorithm_class.__name__
        self.given_hparams = dict(hparams)
        defaults = algorithm_class.complete_hparams({"class_names": f"dataset:{DATASET}"})
        defaults["lp_steps"] = min(LP_STEPS, defaults.get("lp_steps", 0))
        settings = {"class_names": CLASS_NAMES, "contexts": CONTEXTS, "amp": "off"}
        self.hparams: dict[str, Any] = {**defaults, **settings, **hparams}
        self._start: dict[bool, CLIPAlgorithm] = {}
        self._trained: dict[bool, CLIPAlgorithm] = {}

    def build(self, hparams: Mapping[str, Any] | None = None, seed: int = 0) -> CLIPAlgorithm:
        """Build the algorithm, with its ``hparams`` or exactly these; it prints nothing."""
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            return self.algorithm_class(
                SHAPE, len(CLASS_NAMES), DOMAINS, self.hparams if hparams is None else hparams
            )

    def build_exact(self, **hparams: Any) -> CLIPAlgorithm:
        """Build the algorithm for `arithmetic.float64`, without dropout and clipped gradients.

        To be called outside of that: files of weights cannot be read in it.
        """
        unclipped = {**self.hparams, "lora_dropout": 0.0, "grad_clip": 0.0}
        return self.build({**unclipped, **hparams}).double()

    def start(self, exact: bool = False) -> CLIPAlgorithm:
        """A copy of the algorithm before its first step, by `build_exact` if it is ``exact``."""
        if exact not in self._start:
            self._start[exact] = self.build_exact() if exact else self.build()
        return copy.deepcopy(self._start[exact])

    def trained(self, exact: bool = False) -> CLIPAlgorithm:
        """A copy of the algorithm two steps into its last phase, in float64 if it is ``exact``."""
        if exact not in self._trained:
            algorithm = self.start(exact)
            dtype = torch.float64 if exact else torch.float32
            with float64() if exact else contextlib.nullcontext():
                for seed in range(algorithm.lp_steps + 2):
                    take_step(algorithm, seed, minibatches(seed, dtype))
            self._trained[exact] = algorithm
        return copy.deepcopy(self._trained[exact])
