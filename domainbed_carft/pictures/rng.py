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
    """The states of these three generators."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def as_plain_types(states: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same of types that torch's restricted reader knows; `set_states` takes it as well."""
    of_python, (name, words, *rest), of_torch = states
    return of_python, (name, words.tolist(), *rest), of_torch


def set_states(states: tuple[Any, ...]) -> None:
    """Put the three generators into these states."""
    of_python, of_numpy, of_torch = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)


@contextlib.contextmanager
def preserved_states() -> Iterator[None]:
    """Restore the three generators after the block, whatever is drawn or seeded inside."""
    before = get_states()
    try:
        yield
    finally:
        set_states(before)
