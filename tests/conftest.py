"""Shared fixtures: a cache folder of its own, and CLIPs with random weights in OpenAI's format."""

import os
import tempfile
import warnings
from pathlib import Path

import pytest

# Before any test imports the package, and inherited by every sub-process: the user's own cache is
# neither read nor written.
_cache = tempfile.TemporaryDirectory(prefix="carft-test-cache-")
os.environ["DOMAINBED_CARFT_CACHE"] = _cache.name

TINY_SHAPE = dict(
    embed_dim=128,
    image_resolution=48,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=2,
)


def random_clip(seed=0, **shape):
    """A randomly initialised ``clip.model.CLIP`` of this shape, float32."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIP(**shape).eval()


@pytest.fixture(scope="session")
def random_tiny(tmp_path_factory) -> Path:
    """A state dict of a small CLIP with random weights."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "random tiny's.pt"
    torch.save(random_clip(**TINY_SHAPE).state_dict(), path)
    return path
