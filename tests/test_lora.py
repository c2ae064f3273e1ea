"""LoRA of the image encoder: formula, dropout, scale, and saved runs."""

import copy

import pytest
import torch
from test_algorithms import make, minibatches, reopened

from domainbed_carft.clips import backbone
from domainbed_carft.method.lora import LoRA, get_merged_weights

RANK = 2
SCALE = 0.7


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return copy.deepcopy(backbone.load("tiny").model.visual).float()


def adapted(encoder, dropout=0.0):
    """Return LoRA with nonzero factors that are not merged."""
    lora = LoRA(encoder, RANK, SCALE, dropout)
    generator = torch.Generator().manual_seed(1)
    for layer in lora.layers:
        layer.up.data = torch.randn(layer.up.shape, generator=generator) * 0.05
    return lora


def test_attention_and_gradients_equal_torch_with_merged_weight_in_float64(encoder):
    lora = adapted(encoder).double()
    attention = encoder.transformer.resblocks[1].attn.double()
    layer = lora.layers[1]
    reference = torch.nn.MultiheadAttention(attention.embed_dim, attention.num_heads).double()
    reference.load_state_dict(attention.state_dict())
    for index, part in enumerate(reference.in_proj_weight.data.chunk(3)):  # views of the weight
        part += SCALE * layer.up[index].detach() @ layer.down[index].detach()

    x = torch.randn(5, 3, attention.embed_dim, dtype=torch.float64)
    expected = reference(x, x, x, need_weights=False)[0]
    actual = attention.train()(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    actual.square().sum().backward()
    expected.square().sum().backward()
    for index, gradient in enumerate(reference.in_proj_weight.grad.chunk(3)):
        up = layer.up[index].detach()
        down = layer.down[index].detach()
        scaled = SCALE * gradient
        torch.testing.assert_close(layer.up.grad[index], scaled @ down.T, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer.down.grad[index], up.T @ scaled, rtol=1e-9, atol=1e-9)


def test_dropout_is_applied_only_to_the_input_of_the_factors(encoder):
    lora = adapted(encoder, dropout=0.25)
    layer = lora.layers[0]
    x = torch.ones(5000, layer.down.shape[-1])
    bias = torch.zeros(3 * x.shape[1])
    change = layer.project(x, bias) - x @ layer.original.T
    expected = x @ layer.delta().T

    # Dropout keeps the mean of the inputs.
    torch.testing.assert_close(change.mean(0), expected[0], rtol=0, atol=0.02)
    assert change.std(0).min() > 0 and lora.has_dropout()


def test_factors_start_like_a_linear_layer_and_each_projection_has_its_own_dropout(encoder):
    lora = LoRA(encoder, RANK, SCALE, dropout=0.25)
    bound = lora.layers[0].down.shape[-1] ** -0.5  # of torch.nn.Linear
    for layer in lora.layers:
        assert 0.9 * bound < layer.down.abs().max() <= bound
        assert not layer.up.any()

    layer = adapted(encoder, dropout=0.25).layers[0]
    for factor in (layer.down.data, layer.up.data):
        factor[1:] = factor[0]  # so that the projections differ by their dropout only
    x = torch.ones(7, layer.down.shape[-1])
    change = layer.project(x, None) - x @ layer.original.T
    queries, keys, values = change.chunk(3, dim=1)
    for first, second in ((queries, keys), (queries, values), (keys, values)):
        assert not torch.allclose(first, second, atol=1e-4)


# A learning rate that changes the factors much.
JOB = {"lora_rank": RANK, "lr": 1e-2}


@pytest.mark.parametrize(
    ("hparams", "scale"),
    [
        ({}, 0.5**0.5),  # in the released code, at rank 2 and alpha 1
        ({"lora_scaling": "alpha/r"}, 0.5),
        ({"lora_rank": 4, "lora_alpha": 3.0}, 1.5),
        ({"lora_rank": 4, "lora_alpha": 3.0, "lora_scaling": "alpha/r"}, 0.75),
    ],
)
def test_merged_weight_has_the_scale_of_the_hparams(random_tiny, hparams, scale):
    algorithm = make(random_tiny, "CARFT", **{**JOB, **hparams})
    start = [weight.detach().clone() for weight in get_merged_weights(algorithm.encoder)]
    for seed in range(3):
        algorithm.update(minibatches(seed))

    for weight, original, layer in zip(
        get_merged_weights(algorithm.encoder), start, algorithm.lora.layers, strict=True
    ):
        added = torch.cat([up.double() @ down.double() for up, down in zip(layer.up, layer.down)])
        expected = original.double() + scale * added
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)
        assert added.abs().max() > 1e-4


def test_saved_run_has_no_factors_and_opens_without_newer_hparams(random_tiny, tmp_path):
    algorithm = make(random_tiny, "CARFT", **JOB)
    algorithm.update(minibatches())
    run = reopened(algorithm, tmp_path)
    assert not any(name.startswith("lora.") for name in run.algorithm.state_dict())

    del algorithm.hparams["lora_rank"], algorithm.hparams["swad_ratio"]
    assert reopened(algorithm, tmp_path).classes == run.classes
