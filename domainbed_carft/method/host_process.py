"""The command line of the process that a host trains in."""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any

from domainbed_carft.method import host_lookup
from domainbed_carft.method.hparams import implied


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
    overrides = hparams_by_hand()
    missing = implied(algorithm, dataset, overrides, random_seed)
    if not missing or host_lookup.in_our_harness():
        return ""
    return json.dumps({**overrides, **missing})


def planned_steps() -> int | None:
    """The steps that this process trains: of its ``--steps`` or its data set; None if unknown."""
    arguments = _parse_command_line()
    if arguments.steps:
        return int(arguments.steps)

    with contextlib.suppress(Exception):  # without --dataset, or without N_STEPS
        return int(host_lookup.find_dataset_class(arguments.dataset).N_STEPS)
    return None


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
