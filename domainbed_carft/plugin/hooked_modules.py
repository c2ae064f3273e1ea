"""The modules that the hooks extend, and the warnings of the hooks."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed_carft import process_variables
from domainbed_carft.errors import CarftWarning

SWITCH = process_variables.DISABLE.name

# The modules of domainbed with additions, see `additions`.
HOST_MODULES = (
    "domainbed.algorithms",
    "domainbed.networks",
    "domainbed.hparams_registry",
    "domainbed.datasets",
    "domainbed.command_launchers",
)

# Modules of this package that can import modules of domainbed and each other.
OWN_PREFIX = "domainbed_carft.method."

# Modules of this package that are being executed now, and modules of the host that were executed
# in the meantime. The latter can only be extended once the former are complete.
RUNNING: set[str] = set()
WAITING: list[str] = []

# The first module that could not be extended. There are no warnings about further ones.
_failures: list[str] = []
_printed_messages: set[str] = set()


def warn_once(name: str, error: BaseException) -> None:
    """Warn once per process that a module could not be extended, with the reason."""
    if _failures:
        return

    _failures.append(name)
    message = (
        f"domainbed-carft could not extend {name} ({type(error).__name__}: {error}) and left the "
        f"module unchanged. {SWITCH}=1 in the environment switches domainbed-carft off."
    )
    _warn(message)


def warn_about_kept_names(module: str, names: Sequence[str]) -> None:
    """Warn once per process that the host keeps its own classes of these `names`."""
    _warn(
        f"{module} has its own {', '.join(names)}, which remains in use; the class of "
        "domainbed-carft is not added"
    )


def warn_about_missing_hparams(hparams: str) -> None:
    """Warn once per process that a job with another CLIP model needs these ``--hparams``."""
    _warn(
        "the defaults of this DomainBed do not depend on clip_backbone, so learning rate and batch "
        "size would be chosen for a larger CLIP model than 'tiny'. Run with --hparams "
        f"{shlex.quote(hparams)}"
    )


def warn_about_host_values(algorithm: str, values: Sequence[str]) -> None:
    """Warn once per process that a job uses ``values`` of its host in place of the defaults."""
    _warn(
        f"this DomainBed's registry has no defaults for {algorithm}, so the job uses the values "
        f"{', '.join(values)}. To change them, pass --hparams"
    )


def warn_about_host_networks() -> None:
    """Warn once per process that ``clip_backbone`` does not replace the networks of the host."""
    _warn(
        "domainbed.networks of this DomainBed has no Featurizer or reads clip_backbone itself, so "
        "domainbed-carft does not replace the networks of its own algorithms"
    )


def print_rates(rates: Mapping[str, float], host_values: Mapping[str, Any], clip: str) -> None:
    """Print once per process that learning rates of the host are replaced for a CLIP model.

    `train` reads the values of the first call, and later calls only ask for names.
    """
    replaced = [
        f"{name} {value:g} instead of {host_values[name]:g}" for name, value in rates.items()
    ]
    message = (
        f"CLIP learning rate: {', '.join(replaced)}, because this DomainBed's default is for a "
        f"ResNet; to choose it for {clip}, pass --hparams"
    )
    key = f"CLIP learning rate: {', '.join(rates)}"
    if rates and key not in _printed_messages:
        _printed_messages.add(key)
        print(message)


def _warn(message: str) -> None:
    if message in _printed_messages:
        return

    _printed_messages.add(message)
    try:
        warnings.warn(message, CarftWarning, stacklevel=3)
    except CarftWarning:
        # With -W error the warning must not break the host.
        print(message, file=sys.stderr)
