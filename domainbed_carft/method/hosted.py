"""How versions and forks of DomainBed build, call and read algorithms in different ways."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed.algorithms import Algorithm
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.method.parts import PARTS

Minibatches = Sequence[tuple[Tensor, Tensor]]


class HostedAlgorithm(Algorithm):
    """The `Algorithm` of any host: its constructor's arguments, and the parts that it reads."""

    def __init__(self, **arguments: Any) -> None:
        """Call the host's constructor with the ``arguments`` that it accepts."""
        names = inspect.signature(Algorithm.__init__).parameters
        super().__init__(**{name: arguments[name] for name in names if name in arguments})
        self.hparams = arguments["hparams"]

        # DomainBed-v2 sets the parts to None, for its subclasses to replace.
        for name in PARTS:
            with contextlib.suppress(AttributeError):
                delattr(self, name)

    def __getattr__(self, name: str) -> Any:
        """Return a part that a host uses, unless the host has assigned an attribute of that name.

        Parts are built on access, so that the state dict has no additional keys.
        """
        if name in PARTS and name not in self._modules:
            return PARTS[name](self)
        return super().__getattr__(name)


def pair_minibatches(minibatches: Minibatches | None, keywords: Mapping[str, Any]) -> Minibatches:
    """Return pairs (x, y): ``minibatches``, or of the lists ``x`` and ``y`` that SWAD passes."""
    if minibatches is not None:
        return [*minibatches]
    if not {"x", "y"} <= keywords.keys():
        raise CarftError(
            f"update was called with the keywords {sorted(keywords) or 'none'}; expected "
            "update(minibatches) with a list of (x, y), or update(x=..., y=...) with two lists"
        )
    return [*zip(keywords["x"], keywords["y"])]
