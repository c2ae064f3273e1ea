"""What lets two computations of one value agree: float64, and constant random draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

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


def _widening(method: Any) -> Any:
    """A method of tensors that casts to float64 where it is told to cast to float32."""

    def widened(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    def cast(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
        widened_keywords = {name: widened(value) for name, value in keywords.items()}
        return method(tensor, *map(widened, arguments), **widened_keywords)

    return cast


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
    casts: dict[str, Any] = {name: _widening(getattr(Tensor, name)) for name in ("to", "type")}
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.multiple(Tensor, float=Tensor.double, **casts),
            _ConstantDrawsMode() if constant_draws else contextlib.nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
