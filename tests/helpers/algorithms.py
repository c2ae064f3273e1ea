"""Small algorithms, their batches and their checkpoints."""

import warnings

import open_clip_folders
import pytest
import torch
from conftest import random_clip

from domainbed_carft.method import algorithms
from domainbed_carft.runs.saved import load_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import clip

CLASSES = ["dog", "cat", "owl"]
CONTEXTS = ["a photo of a {}", "a sketch of a {}", "a dark {}", "a toy {}"]
MANY_CONTEXTS = [f"photo {number} of a {{}}" for number in range(28)]  # enough for FDAlign
VIT_B_16 = dict(
    embed_dim=512,
    image_resolution=224,
    vision_layers=12,
    vision_width=768,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    transformer_width=512,
    transformer_heads=8,
    transformer_layers=12,
)
FEW = dict(
    vision_layers=2,
    vision_width=192,
    transformer_layers=1,
    transformer_width=64,
    transformer_heads=1,
)
SMALL = {"vision_layers": (1, 1, 1, 1), "vision_width": 16, "image_resolution": 64}
RN50 = {
    **VIT_B_16,
    "embed_dim": 1024,
    "vision_layers": (3, 4, 6, 3),
    "vision_width": 64,
    "vision_patch_size": None,
}
IMAGES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(9))


def settings(weights, algorithm="CARFT", **overrides):
    values = algorithms.hparam_values(algorithm, "Debug28")
    values.update(data_augmentation=True, class_balanced=False)
    values.update(clip_backbone=str(weights), class_names=CLASSES, contexts=CONTEXTS)
    values.update(warmup_steps=2, total_steps=20, drift_every=2)
    values["lp_steps"] = min(values["lp_steps"], 2)
    if algorithm == "FDAlign":
        values["contexts"] = MANY_CONTEXTS
    return {**values, **overrides}


def make(weights, algorithm="CARFT", **overrides):
    torch.manual_seed(0)
    hparams = settings(weights, algorithm, **overrides)
    return getattr(algorithms, algorithm)((3, 28, 28), len(CLASSES), 2, hparams)


def minibatches(seed=0, n=6, size=28):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, 3, size, size, generator=generator),
            torch.randint(0, len(CLASSES), (n,), generator=generator),
        )
        for _ in range(2)
    ]


def train(algorithm, steps):
    return [algorithm.update(minibatches(seed)) for seed in range(steps)]


def same_state(a, b):
    a_state = a.state_dict()
    b_state = b.state_dict()
    return a_state.keys() == b_state.keys() and all(
        torch.equal(a_state[key], b_state[key]) for key in a_state
    )


def reopened(algorithm, folder):
    """Save a run into ``folder`` as DomainBed's train does, and open it."""
    content = {
        "args": {"algorithm": type(algorithm).__name__, "dataset": "Debug28", "test_envs": [0]},
        "model_input_shape": (3, 28, 28),
        "model_num_classes": len(CLASSES),
        "model_num_domains": 2,
        "model_hparams": algorithm.hparams,
        **algorithm.recorded_facts(),
        "model_dict": algorithm.state_dict(),
    }
    torch.save(content, folder / "model.pkl")
    return load_run(folder / "model.pkl", device="cpu")


def as_archive(model, path):
    """Save a TorchScript archive, the format of OpenAI's published weights."""
    size = model.visual.input_resolution
    inputs = (torch.zeros(1, 3, size, size), clip.tokenize(["a"]))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), str(path))


def find_clip(kind, random_tiny, tmp_path):
    """Return a clip_backbone of this kind."""
    if kind == "ViT":
        return random_tiny
    if kind == "ResNet":
        torch.save(random_clip(**{**RN50, **FEW, **SMALL}).state_dict(), tmp_path / "weights.pt")
        return tmp_path / "weights.pt"
    pytest.importorskip("open_clip")
    if kind == "siglip" and not pytest.importorskip("transformers").is_torch_available():
        pytest.skip("this transformers needs a newer torch")
    return open_clip_folders.write(tmp_path / kind, kind)


def logits(algorithm):
    algorithm.eval()
    with torch.no_grad():
        class_logits = algorithm.predict(IMAGES)
    algorithm.train()
    return class_logits
