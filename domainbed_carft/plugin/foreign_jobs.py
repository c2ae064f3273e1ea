"""Jobs of foreign hosts: what nobody has checked there, and what their records would lack.

Our harness checks ``--hparams`` and asks an algorithm for the facts of its job. The `train` of a
foreign host does neither: it makes a dict from its registry and ``--hparams``, gives that one
object to the dataset and to the constructor of the algorithm, and writes it into every record. So
in these hosts, and only there, the constructor adds one key to the dict: ``facts``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from domainbed_carft.errors import invalid, raise_for
from domainbed_carft.jobs.facts import FOREIGN
from domainbed_carft.plugin.hooked_modules import warn_of_hosts_values

# Read by DomainBed's own train; a host's further ones are added by `allow`.
_host_keys = {"data_augmentation", "class_balanced"}


# The arguments of upstream's constructor, in their order.
UPSTREAM_ARGUMENTS = ("input_shape", "num_classes", "num_domains", "hparams")


class StepValues(dict[str, float]):
    """What `update` returns, with ``train_acc`` for a host that asks for it, as DomainBed-v2 does.

    That is the share of the batch that is predicted right after the step. It takes a forward pass,
    so it is measured when it is asked for, and no record of any other host has it.
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
            is_right = self._algorithm.predict(x).argmax(1) == y
        self._algorithm.train()
        return is_right.float().mean().item()


class ForeignJob:
    """Stands before an algorithm of ours in the bases of the class that a foreign host gets."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """Build the algorithm with a host's own arguments.

        Positional ones are in the order of the host's ``Algorithm``. A fork may leave out
        ``num_domains`` and pass more than upstream, of which its ``Algorithm`` gets what it takes.
        """
        from domainbed import algorithms

        names: Sequence[str] = [*inspect.signature(algorithms.Algorithm.__init__).parameters][1:]
        if "hparams" not in names:
            names = UPSTREAM_ARGUMENTS
        self._build_in_host(**dict(zip(names, args)), **keywords)

    def _build_in_host(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hparams: MutableMapping[str, Any],
        num_domains: int = 1,
        **host_arguments: Any,
    ) -> None:
        """Build the algorithm, and add what it found about its job to ``hparams``, as ``facts``.

        Raises CarftError for hparams that are unknown or invalid, and for what this host cannot do;
        all problems come at once.
        """
        algorithm: Any = self
        values = dict(hparams)  # a fork's configuration object may have keys and items, no more
        complete = with_missing_hparams(values, type(algorithm).__name__)
        raise_for(job_problems(type(algorithm), input_shape, complete))
        build: Any = super().__init__
        build(input_shape, num_classes, num_domains, complete, **host_arguments)
        hparams[FOREIGN] = algorithm.facts

    def update(self, minibatches: Any = None, *args: Any, **keywords: Any) -> StepValues:
        """Take a training step, as `CLIPAlgorithm.update` does."""
        algorithm: Any = super()
        return StepValues(algorithm.update(minibatches, *args, **keywords), self, minibatches)

    def scheduler_step(self) -> None:
        """Do nothing: `update` has stepped the schedule. DomainBed-v2 calls it once an epoch."""


@functools.cache
def in_foreign_host(algorithm: type[Any], module: str) -> type[Any]:
    """The class ``algorithm`` for the foreign host's ``module`` of algorithms.

    It bears the same name, and always is the same object.
    """
    namespace = {"__module__": module, "__doc__": algorithm.__doc__}
    return type(algorithm.__name__, (ForeignJob, algorithm), namespace)


def job_problems(
    algorithm: Any, input_shape: Sequence[int], hparams: Mapping[str, Any]
) -> list[str]:
    """The problems of a job in a foreign host, whose `train` has checked nothing.

    ``algorithm``: its class. These are unknown and invalid hparams, images not in RGB, and what
    the host lacks.
    """
    from domainbed_carft.method import hparam_checks

    problems = hparam_checks.job_problems(algorithm, input_shape, hparams)
    return [*unknown_names(hparams, algorithm.__name__), *problems, *_host_problems(hparams)]


def with_missing_hparams(values: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """These ``values`` of a host, and the defaults of those of our hparams that it has left out.

    A fork's own entry point may replace the functions of `hparams_registry` (AISG's ``dwa_train``).
    What the host gives by one of our names, such as ``lr``, stays; a warning says so where it is
    not our default.
    """
    from domainbed_carft.method.algorithms import hparam_values

    dataset = _parse_command_line().dataset or ""
    clip_backbone = values.get("clip_backbone", "")
    defaults = hparam_values(algorithm, dataset, clip_backbone=clip_backbone, steps=planned_steps())
    if not dataset:  # no train of a host's but a notebook: the values are the user's
        del defaults["class_names"]
        return {**defaults, **values}
    if defaults.keys() <= values.keys():
        return dict(values)

    by_hand = hparams_by_hand()
    kept = [
        f"{name} is {values[name]!r} (by default {default!r})"
        for name, default in defaults.items()
        if name in values and name not in by_hand and values[name] != default
    ]
    if kept:
        warn_of_hosts_values(algorithm, kept)
    return {**defaults, **values}


def allow(keys: Iterable[str]) -> None:
    """Accept these keys as the host's: its registry puts them into every hparams dict."""
    _host_keys.update(keys)


def unknown_names(hparams: Mapping[str, Any], algorithm: str) -> list[str]:
    """The names among ``hparams`` of a job that are none of ours; all valid ones behind the last.

    Forks add their own keys between the registry and the algorithm (DPLCLIP its test environments,
    MIRO its whole configuration). So a key counts as unknown only if the user gave it.
    """
    from domainbed_carft import text
    from domainbed_carft.method.algorithms import recorded_hparams
    from domainbed_carft.method.hparams import PINNABLE

    names = sorted(recorded_hparams(algorithm))
    valid_keys = sorted({*names, *PINNABLE, *_host_keys})
    unexpected = ({*hparams} & {*hparams_by_hand()}) - {*valid_keys}
    unknown = []
    for key in sorted(unexpected):
        close = text.near(key, valid_keys, most=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        unknown.append(f"unknown hparam {key!r}{hint}")
    if unknown:
        unknown[-1] += f"; valid hparams: {', '.join(names)}"
    return unknown


def hparams_by_hand() -> dict[str, Any]:
    """``--hparams`` of this process, which DomainBed's train merges unchecked.

    Empty where it is not a JSON object, or there is no such option.
    """
    with contextlib.suppress(ValueError, TypeError):
        return dict(json.loads(_parse_command_line().hparams or "{}"))
    return {}


def hparams_to_add(algorithm: str, dataset: str, random_seed: int | None) -> str:
    """The ``--hparams`` of this process with what its host cannot add to it, "" if that is nothing.

    The defaults of a checkout do not see ``--hparams``, so they do not fit another CLIP there.
    """
    from domainbed_carft.method import algorithms

    overrides = hparams_by_hand()
    missing = algorithms.CLASSES[algorithm].implied_hparams(dataset, overrides, random_seed)
    return json.dumps({**overrides, **missing}) if missing else ""


def planned_steps() -> int | None:
    """The steps that this process trains: of its ``--steps`` or its dataset; None if unknown."""
    from domainbed_carft.method import host_lookup

    arguments = _parse_command_line()
    if arguments.steps:
        return int(arguments.steps)

    with contextlib.suppress(Exception):  # without --dataset, or without N_STEPS
        return int(host_lookup.find_dataset_class(arguments.dataset).N_STEPS)
    return None


def _host_problems(hparams: Mapping[str, Any]) -> list[str]:
    """What only our harness does: train by several processes, and draw batches in passes."""
    from domainbed_carft import process_variables

    problems = [
        f"{name} is {os.environ[name]}, and this DomainBed trains a job in one process: it does "
        "not synchronise gradients; start a single process, or use the harness of this package"
        for name in ("WORLD_SIZE", process_variables.PROCESSES.name)
        if os.environ.get(name, "").isdecimal() and int(os.environ[name]) > 1
    ]

    sampling = hparams.get("sampling", "with-replacement")
    if sampling != "with-replacement":
        expected = (
            "'with-replacement' in any host but the harness of this package, which alone draws so"
        )
        problems.append(invalid("sampling", sampling, expected))
    return problems


def _parse_command_line() -> argparse.Namespace:
    """``--hparams``, ``--steps`` and ``--dataset`` of this process; None what it does not have."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--hparams")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dataset")
    try:
        return parser.parse_known_args()[0]
    except argparse.ArgumentError:  # not DomainBed's command line
        return argparse.Namespace(hparams=None, steps=None, dataset=None)
