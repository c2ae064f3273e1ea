"""CLIPs in OpenAI's format and open_clip's, built once a worker: later ones are copies, to the bit.

Building draws random weights, which are then overwritten. So a copy is made only where the random
generator stands where it stood before, and leaves it where building would have.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch

from domainbed_carft.clips import open_clip, openai
from domainbed_carft.files import weights

MOST_MODELS = 12
MOST_BYTES = 100 << 20  # of the weights of a model

_load_state = openai._load_state
_build = openai._build
_load_model = open_clip._load_model


class _State(dict[str, Any]):
    """A state dict that knows the digest of its file."""

    digest: str


_states: dict[str, _State] = {}
_models: dict[Hashable, tuple[Any, torch.Tensor]] = {}  # the last one used is the last


def install(patch: pytest.MonkeyPatch) -> None:
    """Let the package's loader use the copies."""
    patch.setattr(openai, "_load_state", _cached_state)
    patch.setattr(openai, "_build", _cached_model)
    patch.setattr(open_clip, "_load_model", _cached_open_clip)


def uninstall(patch: pytest.MonkeyPatch) -> None:
    """Let the package's loader read and build each CLIP, for a test that counts what is read."""
    patch.setattr(openai, "_load_state", _load_state)
    patch.setattr(openai, "_build", _build)
    patch.setattr(open_clip, "_load_model", _load_model)


def _cached_state(path: Path, digest: str) -> Any:
    if digest in _states:
        return _states[digest]

    state = _load_state(path, digest)
    if path.stat().st_size < MOST_BYTES and isinstance(state, dict):
        cached = _State(state)
        cached.digest = digest
        _states[digest] = cached
        return cached
    return state


def _cached_model(state: Any) -> Any:
    if not isinstance(state, _State):
        return _build(state)
    return _copy_of(state.digest, lambda: _build(state))


def _cached_open_clip(config: open_clip.Config, path: Path) -> Any:
    if path.stat().st_size >= MOST_BYTES:
        return _load_model(config, path)

    digest = weights.cached_sha256(path)
    content = (json.dumps(config), path.suffix, digest)
    return _copy_of(content, lambda: _load_model(config, path))


def _copy_of(content: Hashable, build: Callable[[], Any]) -> Any:
    """A copy of the model that is built of this content, by the random generator as it stands."""
    key = (content, torch.get_rng_state().numpy().tobytes())
    found = _models.pop(key, None)
    if found is None:
        model = build()
        found = model, torch.get_rng_state()
        if len(_models) == MOST_MODELS:
            _models.pop(next(iter(_models)))

    _models[key] = found
    model, generator_state = found
    torch.set_rng_state(generator_state)
    return copy.deepcopy(model)
