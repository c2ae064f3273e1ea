"""Random numbers that depend only on a key, not on earlier draws or the process."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """Derive a 64-bit seed from a key; similar keys give independent seeds (SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def reseed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch's CPU, which transforms use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def get_states() -> tuple[Any, ...]:
    """Return the states of the global generators of Python, numpy and torch's CPU."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def as_plain_types(states: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert states to types that `torch.load` reads with ``weights_only``, for `set_states`."""
    python_state, (name, words, *position), torch_state = states
    return python_state, (name, words.tolist(), *position), torch_state


def set_states(states: tuple[Any, ...]) -> None:
    """Set the states of the global generators of Python, numpy and torch's CPU."""
    python_state, numpy_state, torch_state = states
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)


@contextlib.contextmanager
def preserve_states() -> Iterator[None]:
    """Restore the three global generators after the block, even if they are seeded inside."""
    before = get_states()
    try:
        yield
    finally:
        set_states(before)
