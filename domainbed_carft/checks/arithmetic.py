"""Arithmetic in which two computations of one value agree: float64, constant random draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RANDOM_FUNCTIONS = {
    torch.rand,
    torch.randn,
    torch.randint,
    torch.rand_like,
    torch.randn_like,
    torch.randint_like,
    torch.normal,
    torch.bernoulli,
}


def _with_wide_casts(method: Any) -> Any:
    """Wrap a casting method of tensors, so that a cast to float32 becomes one to float64."""

    def widen(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    def cast(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
        widened_keywords = {name: widen(value) for name, value in keywords.items()}
        return method(tensor, *map(widen, arguments), **widened_keywords)

    return cast


def _draw_on_cpu(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Draw with the CPU's generator, and move the result to the device it was requested for."""

    def move(value: Any) -> Any:
        return value.cpu() if isinstance(value, Tensor) else value

    tensors = [value for value in args if isinstance(value, Tensor)]
    device = kwargs.get("device") or (tensors[0].device if tensors else "cpu")
    named = {name: value for name, value in kwargs.items() if name != "device"}
    return func(*map(move, args), **named).to(device)


class _ConstantDrawsMode(TorchFunctionMode):
    """Replace all numbers of a random draw by its first one, and skip dropout.

    GPUs would draw other numbers than the CPU, so the CPU draws for them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            return args[0]
        if func not in _RANDOM_FUNCTIONS:
            return func(*args, **(kwargs or {}))
        draw = _draw_on_cpu(func, args, kwargs or {})
        return draw.fill_(draw.flatten()[0].item())


@contextlib.contextmanager
def float64(constant_draws: bool = False) -> Iterator[None]:
    """Compute in float64 inside the context, with modules that were converted by `double`.

    With ``constant_draws`` all images of a batch get the same random numbers, on every device, so
    that the result depends neither on their order nor on the device.
    """
    dtype = torch.get_default_dtype()
    casts: dict[str, Any] = {
        name: _with_wide_casts(getattr(Tensor, name)) for name in ("to", "type")
    }
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.multiple(Tensor, float=Tensor.double, **casts),
            _ConstantDrawsMode() if constant_draws else contextlib.nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
