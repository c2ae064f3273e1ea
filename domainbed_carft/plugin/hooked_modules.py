"""The modules that the hooks wait for, and their warnings."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence

from domainbed_carft import process_variables
from domainbed_carft.errors import CarftWarning

SWITCH = process_variables.DISABLE.name

# The modules of domainbed that get additions, see `additions`.
HOST_MODULES = (
    "domainbed.algorithms",
    "domainbed.hparams_registry",
    "domainbed.datasets",
    "domainbed.command_launchers",
)

# Our modules some of which import one of domainbed's at their top, and each other.
OWN_PREFIX = "domainbed_carft.method."

# Those of ours that are being executed just now, and the host's modules that were through
# meanwhile. Nothing can be added to these yet; their turn comes once ours are through.
RUNNING: set[str] = set()
WAITING: list[str] = []

# What this process could not extend first; it warns of nothing more.
_failures: list[str] = []
_printed_messages: set[str] = set()


def warn_once(name: str, error: BaseException) -> None:
    """Warn, once a process, that we could not extend `name`, why, and how to switch us off."""
    if _failures:
        return

    _failures.append(name)
    message = (
        f"domainbed-carft could not extend {name} ({type(error).__name__}: {error}) and left the "
        f"module unchanged. {SWITCH}=1 in the environment switches domainbed-carft off."
    )
    _warn(message)


def warn_of_kept_names(module: str, names: Sequence[str]) -> None:
    """Warn, once a process, that the host keeps its own classes of these `names`."""
    _warn(
        f"{module} has its own {', '.join(names)}, which stays in use; that of domainbed-carft is "
        "not added"
    )


def warn_of_hparams_to_add(hparams: str) -> None:
    """Warn, once a process, that a job needs these ``--hparams``, which its defaults cannot see."""
    _warn(
        "this DomainBed's defaults cannot see that clip_backbone is 'tiny': its learning rate and "
        f"batch are those of a larger CLIP. Run with --hparams {shlex.quote(hparams)}"
    )


def warn_of_hosts_values(algorithm: str, values: Sequence[str]) -> None:
    """Warn, once a process, that a job has ``values`` of its host in place of our defaults."""
    _warn(
        f"this DomainBed's registry does not know {algorithm}, so the job has the host's values: "
        f"{', '.join(values)}. Set them with --hparams"
    )


def _warn(message: str) -> None:
    if message in _printed_messages:
        return

    _printed_messages.add(message)
    try:
        warnings.warn(message, CarftWarning, stacklevel=3)
    except CarftWarning:
        # Under -W error the warning would become the host's failure.
        print(message, file=sys.stderr)
