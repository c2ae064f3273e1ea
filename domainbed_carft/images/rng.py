"""Random numbers that depend on a key alone, not on what was drawn before or by which process."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """A seed of 64 bits; numpy's SeedSequence keeps those of similar keys apart."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def reseed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch's CPU; transforms draw from these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def get_states() -> tuple[Any, ...]:
    """The states of the global generators of Python, numpy and torch's CPU."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def as_plain_types(states: tuple[Any, ...]) -> tuple[Any, ...]:
    """States of `get_states` in types that torch's restricted reader knows, for `set_states`."""
    python_state, (name, words, *position), torch_state = states
    return python_state, (name, words.tolist(), *position), torch_state


def set_states(states: tuple[Any, ...]) -> None:
    """Put the generators of Python, numpy and torch's CPU into these states."""
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
