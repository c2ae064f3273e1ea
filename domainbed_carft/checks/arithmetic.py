"""Modes of torch in which two computations of one value agree: float64, and constant draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = {
    torch.rand,
    torch.randn,
    torch.randint,
    torch.rand_like,
    torch.randn_like,
    torch.randint_like,
    torch.normal,
    torch.bernoulli,
}


class _Float64Mode(TorchFunctionMode):
    """Casts to float64 where the code casts to float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        widened = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **widened)


def _widened(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


class _ConstantDrawsMode(TorchFunctionMode):
    """Replaces the numbers of each random draw by the first of them, and leaves dropout out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            return args[0]
        result = func(*args, **(kwargs or {}))
        return result.fill_(result.flatten()[0].item()) if func in _DRAWS else result


@contextlib.contextmanager
def float64(constant_draws: bool = False) -> Iterator[None]:
    """Compute in float64 inside, with modules whose weights are `double`.

    ``constant_draws``: whether all images of a batch get the same random numbers, so that their
    order does not matter.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64Mode(), _ConstantDrawsMode() if constant_draws else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)
