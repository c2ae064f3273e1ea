"""Jobs in checkouts: checks and recorded facts that the `train` of a checkout lacks.

The included harness checks ``--hparams`` and records the facts of a job. The `train` of a checkout
does neither. It makes a dict from its registry and ``--hparams``, passes this object to the dataset
and to the constructor of the algorithm, and writes it into every record. Therefore, only in
checkouts, the constructor adds the key ``facts`` to the dict.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import os
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from domainbed_carft.datasets import known_datasets
from domainbed_carft.errors import invalid, raise_for
from domainbed_carft.jobs.facts import FOREIGN
from domainbed_carft.plugin.hooked_modules import warn_about_host_values

# Hyperparameters read by DomainBed's train. `allow_keys` adds others of the host.
_host_keys = {"data_augmentation", "class_balanced"}


# The arguments of upstream's constructor, in their order.
UPSTREAM_ARGUMENTS = ("input_shape", "num_classes", "num_domains", "hparams")


class StepValues(dict[str, float]):
    """Values returned by `update`, and ``train_acc``, which DomainBed-v2 reads.

    ``train_acc`` is the accuracy on the batch after the step. It takes a forward pass, so it is
    computed only when it is read. Records of other hosts do not have it.
    """

    def __init__(self, values: Mapping[str, float], algorithm: Any, minibatches: Any) -> None:
        super().__init__(values)
        self._algorithm = algorithm
        self._minibatches = minibatches

    def __missing__(self, name: str) -> float:
        if name != "train_acc" or self._minibatches is None:
            raise KeyError(name)

        import torch

        x, y = map(torch.cat, zip(*self._minibatches))
        self._algorithm.eval()
        with torch.no_grad():
            correct = self._algorithm.predict(x).argmax(1) == y
        self._algorithm.train()
        return correct.float().mean().item()


class ForeignJob:
    """First base class of an algorithm in a checkout, before the algorithm of this package."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the algorithm with the arguments of the host's ``Algorithm``, in its order.

        A fork can omit ``num_domains`` and pass more arguments than upstream. Its ``Algorithm``
        gets those that it has parameters for.
        """
        from domainbed import algorithms

        names: Sequence[str] = [*inspect.signature(algorithms.Algorithm.__init__).parameters][1:]
        if "hparams" not in names:
            names = UPSTREAM_ARGUMENTS
        self._build_for_host(**dict(zip(names, args)), **kwargs)

    def _build_for_host(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hparams: MutableMapping[str, Any],
        num_domains: int = 1,
        **host_arguments: Any,
    ) -> None:
        """Build the algorithm, and add the facts of its job to ``hparams``.

        Raises CarftError, which lists all problems, for unknown or invalid hparams and settings
        that the host does not support.
        """
        algorithm: Any = self
        values = dict(hparams)  # the configuration object of a fork can have just keys and items
        complete = add_missing_hparams(values, type(algorithm).__name__)
        raise_for(job_problems(type(algorithm), input_shape, complete))
        host_arguments.setdefault("dataset_facts", known_datasets.recall(complete))
        build: Any = super().__init__
        build(input_shape, num_classes, num_domains, complete, **host_arguments)
        hparams[FOREIGN] = algorithm.facts

    def update(self, minibatches: Any = None, *args: Any, **kwargs: Any) -> StepValues:
        """Take a training step with `CLIPAlgorithm.update`."""
        algorithm: Any = super()
        return StepValues(algorithm.update(minibatches, *args, **kwargs), self, minibatches)

    def scheduler_step(self) -> None:
        """Do nothing, because `update` steps the schedule. DomainBed-v2 calls it once per epoch."""


@functools.cache
def make_foreign_class(algorithm: type[Any], module: str) -> type[Any]:
    """Derive the class of ``algorithm`` for a checkout, with the same name.

    Args:
        algorithm: an algorithm of this package or the user.
        module: name of the checkout's module of algorithms.
    """
    namespace = {"__module__": module, "__doc__": algorithm.__doc__, "IS_OF_CHECKOUT": True}
    return type(algorithm.__name__, (ForeignJob, algorithm), namespace)


def job_problems(
    algorithm: Any, input_shape: Sequence[int], hparams: Mapping[str, Any]
) -> list[str]:
    """Return the problems of a job in a checkout, whose `train` checks nothing.

    Problems are unknown and invalid hparams, images not in RGB, and unsupported settings.

    Args:
        algorithm: the class of the algorithm.
        input_shape: channels, height and width of the images.
        hparams: the complete hyperparameters.
    """
    from domainbed_carft.method import job, resolution

    return [
        *find_unknown_names(hparams, algorithm.__name__),
        *map(str, resolution.find_problems(algorithm, hparams)),
        *job.find_shape_problems(input_shape),
        *_host_problems(hparams),
    ]


def add_missing_hparams(values: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """Add defaults of an algorithm for hyperparameters that a host has not set.

    The entry point of a fork can replace the functions of `hparams_registry` (AISG's
    ``dwa_train``). Values of the host, such as ``lr``, are kept, with a warning if they differ from
    the default.

    Args:
        values: the hyperparameters of the host.
        algorithm: name of the algorithm.
    """
    from domainbed_carft.method.algorithms import hparam_values

    dataset = _parse_command_line().dataset or ""
    clip_backbone = values.get("clip_backbone", "")
    defaults = hparam_values(
        algorithm, dataset, clip_backbone=clip_backbone, steps=get_planned_steps()
    )
    if not dataset:  # in a notebook, without a train, the values are the user's
        del defaults["class_names"]
        return {**defaults, **values}
    if defaults.keys() <= values.keys():
        return dict(values)

    user_hparams = parse_user_hparams()
    host_values = [
        f"{name} is {values[name]!r} (by default {default!r})"
        for name, default in defaults.items()
        if name in values and name not in user_hparams and values[name] != default
    ]
    if host_values:
        warn_about_host_values(algorithm, host_values)
    return {**defaults, **values}


def complete_host_hparams(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the hyperparameters that an algorithm of the host needs for a CLIP model.

    They are missing in a notebook, and in a host whose ``train`` does not read ``--hparams``.
    """
    from domainbed_carft.method import host_hparams

    dataset = _parse_command_line().dataset or ""
    return {**values, **host_hparams.get_added_values(values, values, dataset)}


def find_host_problems(
    algorithm: str, hparams: Mapping[str, Any], names: Collection[str]
) -> list[str]:
    """Return the problems of an algorithm of the host with the complete hyperparameters of CLIP.

    ``names`` are from `get_host_names`; without them no name is checked.
    """
    from domainbed_carft.method import host_hparams

    problems = host_hparams.find_problems(hparams, _parse_command_line().dataset or "")
    if names:
        from domainbed import hparams_registry

        given = parse_user_hparams()
        problems += host_hparams.find_unknown(hparams_registry, algorithm, given, names)
    return [*map(str, problems)]


def describe_host_hparams(
    algorithm: str, hparams: Mapping[str, Any], names: Collection[str]
) -> list[str]:
    """Return lines about hyperparameters without an effect, and about learning rates of the host.

    The registry could not replace these for a host whose ``train`` does not read ``--hparams``.
    """
    from domainbed_carft.method import host_hparams

    if not names:
        return []

    given = parse_user_hparams()
    unread = host_hparams.find_unread(given, names)
    lines = [f"{name} has no effect on {algorithm}" for name in unread]
    if "clip_backbone" not in given:
        dataset = _parse_command_line().dataset or ""
        defaults = host_hparams.get_rates(hparams, hparams["clip_backbone"], dataset)
        lines += [
            f"CLIP learning rate: {name} is {hparams[name]:g}; the default of domainbed-carft for "
            f"this CLIP model is {default:g}"
            for name, default in defaults.items()
            if hparams[name] != default
        ]
    return lines


def get_host_names(algorithm: str) -> Collection[str]:
    """Return the names that a checkout's registry has for an algorithm; none if it is unknown."""
    from domainbed import hparams_registry

    with contextlib.suppress(Exception):  # a fork's function can raise any type
        dataset = _parse_command_line().dataset or ""
        names: Collection[str] = hparams_registry.default_hparams(algorithm, dataset).keys()
        return names
    return ()


def allow_keys(keys: Iterable[str]) -> None:
    """Accept keys that the host's registry puts into every dict of hyperparameters."""
    _host_keys.update(keys)


def find_unknown_names(hparams: Mapping[str, Any], algorithm: str) -> list[str]:
    """Return a message for each unknown hyperparameter; the last one lists all valid names.

    Forks add keys between the registry and the algorithm (DPLCLIP its test environments, MIRO its
    complete configuration). Therefore only keys set by the user count as unknown.
    """
    from domainbed_carft import suggestions
    from domainbed_carft.method.algorithms import recorded_hparams
    from domainbed_carft.method.hparams import CLIP_HEAD, PINNABLE

    names = sorted(recorded_hparams(algorithm))
    valid_keys = sorted({*names, *PINNABLE, CLIP_HEAD.name, *_host_keys})
    unexpected = ({*hparams} & {*parse_user_hparams()}) - {*valid_keys}
    unknown = []
    for key in sorted(unexpected):
        close = suggestions.near_matches(key, valid_keys, limit=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        unknown.append(f"unknown hparam {key!r}{hint}")
    if unknown:
        unknown[-1] += f"; valid hparams: {', '.join(names)}"
    return unknown


def parse_user_hparams() -> dict[str, Any]:
    """Parse ``--hparams`` of this process; return an empty dict unless it is a JSON object."""
    with contextlib.suppress(ValueError, TypeError):
        return dict(json.loads(_parse_command_line().hparams or "{}"))
    return {}


def get_missing_hparams(algorithm: str, dataset: str, random_seed: int | None) -> str:
    """Return ``--hparams`` of this process completed for its CLIP model, as JSON.

    The defaults of a checkout do not depend on ``--hparams``, so that they do not fit another CLIP
    model. Returns an empty string if nothing is missing.
    """
    from domainbed_carft.method.algorithms import hparam_values

    given = parse_user_hparams()
    usual, fitting = (
        hparam_values(algorithm, dataset, random_seed, clip_backbone)
        for clip_backbone in ("", str(given.get("clip_backbone", "")))
    )
    missing = {
        name: value for name, value in fitting.items() if value != usual[name] and name not in given
    }
    return json.dumps({**given, **missing}) if missing else ""


def get_planned_steps() -> int | None:
    """Return the steps of this process by ``--steps`` or its dataset, or None if unknown."""
    from domainbed_carft.method import host_lookup

    arguments = _parse_command_line()
    if arguments.steps:
        return int(arguments.steps)

    with contextlib.suppress(Exception):  # without --dataset, or without N_STEPS
        return int(host_lookup.find_dataset_class(arguments.dataset).N_STEPS)
    return None


def _host_problems(hparams: Mapping[str, Any]) -> list[str]:
    """Return problems of settings that only the included harness supports."""
    from domainbed_carft import process_variables

    problems = [
        f"{name} is {os.environ[name]}, but this DomainBed trains a job in one process and does "
        "not synchronise gradients. Start a single process, or use the harness of this package"
        for name in ("WORLD_SIZE", process_variables.PROCESSES.name)
        if os.environ.get(name, "").isdecimal() and int(os.environ[name]) > 1
    ]

    sampling = hparams.get("sampling", "with-replacement")
    if sampling != "with-replacement":
        expected = "'with-replacement'; only the harness of this package supports other values"
        problems.append(invalid("sampling", sampling, expected))
    return problems


def _parse_command_line() -> argparse.Namespace:
    """Parse ``--hparams``, ``--steps`` and ``--dataset`` of this process; missing ones are None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--hparams")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dataset")
    try:
        return parser.parse_known_args()[0]
    except argparse.ArgumentError:  # not DomainBed's command line
        return argparse.Namespace(hparams=None, steps=None, dataset=None)


def to_python_number(value: Any) -> Any:
    """Convert a number of numpy to Python's type.

    Upstream draws numbers of numpy, which neither JSON nor torch's restricted reader accepts.
    """
    import numpy as np

    return value.item() if isinstance(value, np.generic) else value
