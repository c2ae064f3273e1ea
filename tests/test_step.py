"""The computation of a step: checkpointed or compiled blocks, and its precision."""

import copy
import dataclasses
import shutil

import pytest
import torch
from fake_checkout import REPO, run_python
from helpers.algorithms import find_clip, make, minibatches, same_state, train

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.machine import devices
from domainbed_carft.method import encoders, job
from domainbed_carft.method.penalties import LDIFSPenalty


def count_saved_bytes(algorithm, batch):
    """Return the number of bytes saved for the gradients of a batch."""
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        algorithm.forward(torch.cat([x for x, _ in batch])).sum()
    return sum(sizes.values())


KINDS = ["ViT", "ResNet", "gelu", "siglip"]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_blocks_change_only_memory(kind, random_tiny, tmp_path):
    path = find_clip(kind, random_tiny, tmp_path)
    overrides = {"ldifs_weight": 0.5, "miro_weight": 0.5, "micro_batch": 8}
    plain, checkpointed = (make(path, checkpoint_blocks=on, **overrides) for on in (False, True))
    if kind == "ViT":
        plain_bytes = count_saved_bytes(plain, minibatches())
        assert count_saved_bytes(checkpointed, minibatches()) < 0.5 * plain_bytes

    assert train(plain, 3) == train(checkpointed, 3)
    assert same_state(plain, checkpointed) and same_state(plain, copy.deepcopy(checkpointed))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_change_only_rounding():
    # In a separate process: torch.compile needs setuptools, which no other test imports.
    code = "import test_step; test_step.check_compiled_blocks()"
    done = run_python("-c", code, cwd=REPO / "tests")
    assert done.returncode == 0, done.stderr[-3000:]


def check_compiled_blocks():
    """Check penalties, averages and copies of an algorithm with compiled blocks."""
    overrides = {"ldifs_weight": 0.5, "miro_weight": 0.5, "average": "ema"}
    plain, compiled = (make("tiny", compile_blocks=on, **overrides) for on in (False, True))
    for measurements, expected in zip(train(compiled, 3), train(plain, 3), strict=True):
        assert measurements == pytest.approx(expected, rel=1e-3)

    x = minibatches()[0][0]
    copied = copy.deepcopy(compiled)
    with torch.no_grad():
        for algorithm in (compiled, copied):
            torch.testing.assert_close(algorithm.predict(x), plain.predict(x), rtol=1e-3, atol=1e-3)
        copied.encoder.proj.mul_(2)
        assert torch.equal(copied.features(x), 2 * compiled.features(x))


# Precision


def test_amp_auto_is_bf16_on_gpus_that_support_it(monkeypatch):
    assert [*map(job.resolve_amp, ("auto", "off", "bf16"))] == ["off", "off", "bf16"]

    monkeypatch.setattr(devices, "default_device", lambda: devices.GPU)
    gpu = devices.GPUFacts("Card", memory=2**34, capability=(8, 0))
    monkeypatch.setattr(devices, "gpu_facts", lambda: gpu)
    assert [*map(job.resolve_amp, ("auto", "off", "bf16"))] == ["bf16", "off", "bf16"]

    gpu = dataclasses.replace(gpu, capability=(7, 5))
    assert [*map(job.resolve_amp, ("auto", "off"))] == ["off", "off"]
    with pytest.raises(CarftError, match=r"'off' on Card, .* is 7\.5.* set amp to 'off'"):
        job.resolve_amp("bf16")


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_original_equals_autocast_in_bf16(kind, random_tiny, tmp_path):
    clip_model = backbone.load(str(find_clip(kind, random_tiny, tmp_path)))
    encoder = clip_model.model.visual
    exact = encoders.FrozenOriginal(encoder, True, keep_weights=True)
    rounded = encoders.FrozenOriginal(encoder, True)
    size = clip_model.preprocessing.resolution
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    # torch's fast path for batch-first attention ignores autocast.
    tolerance = 0.05 if kind == "gelu" else 0

    for rounded_output, exact_output in zip(
        rounded(images, {"ldifs": LDIFSPenalty.places}),
        exact(images, {"ldifs": LDIFSPenalty.places}),
    ):
        torch.testing.assert_close(rounded_output, exact_output, rtol=tolerance, atol=tolerance)

    rounded_bytes = sum(p.nbytes for p in rounded.encoder.parameters())
    exact_bytes = sum(p.nbytes for p in exact.encoder.parameters())
    assert rounded_bytes < 0.75 * exact_bytes  # small models have few matrices
