"""LoRA of the image encoder: its formula, what it trains, and what a run of it leaves."""

import copy

import pytest
import torch

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method.lora import LoRA

RANK = 2
ALPHA = 1.0


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return copy.deepcopy(backbone.load("tiny").model.visual).float()


@pytest.fixture
def pictures(encoder):
    return torch.randn(3, 3, encoder.input_resolution, encoder.input_resolution)


def adapted(encoder, dropout=0.0):
    """LoRA with factors that are not zero, not merged yet."""
    lora = LoRA(encoder, RANK, ALPHA, dropout)
    generator = torch.Generator().manual_seed(1)
    for layer in lora.layers:
        layer.up.data = torch.randn(layer.up.shape, generator=generator) * 0.05
    return lora


def test_new_factors_change_nothing(encoder, pictures):
    expected = encoder(pictures)
    lora = LoRA(encoder, RANK, ALPHA, 0.25)
    lora.merge()
    torch.testing.assert_close(encoder.train()(pictures), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder.eval()(pictures), expected)


def test_attention_computes_with_w_plus_scaled_b_a_in_float64(encoder):
    """Output and gradients equal those of torch's attention with the merged weight."""
    lora = adapted(encoder).double()
    attention = encoder.transformer.resblocks[1].attn.double()
    layer = lora.layers[1]
    reference = torch.nn.MultiheadAttention(attention.embed_dim, attention.num_heads).double()
    reference.load_state_dict(attention.state_dict())
    for index, part in enumerate(reference.in_proj_weight.data.chunk(3)):  # views of the weight
        part += ALPHA / RANK * layer.up[index].detach() @ layer.down[index].detach()

    x = torch.randn(5, 3, attention.embed_dim, dtype=torch.float64)
    expected = reference(x, x, x, need_weights=False)[0]
    actual = attention.train()(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    actual.square().sum().backward()
    expected.square().sum().backward()
    for index, gradient in enumerate(reference.in_proj_weight.grad.chunk(3)):
        up = layer.up[index].detach()
        down = layer.down[index].detach()
        scaled = ALPHA / RANK * gradient
        torch.testing.assert_close(layer.up.grad[index], scaled @ down.T, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer.down.grad[index], up.T @ scaled, rtol=1e-9, atol=1e-9)


def test_merged_weights_predict_what_training_computes(encoder, pictures):
    lora = adapted(encoder)
    trained_on = encoder.train()(pictures)
    lora.merge()
    torch.testing.assert_close(encoder.eval()(pictures), trained_on, rtol=1e-4, atol=1e-5)


def test_only_the_factors_are_trained_and_names_of_the_encoder_stay(encoder):
    names = [*encoder.state_dict()]
    lora = LoRA(encoder, RANK, ALPHA, 0.25)
    assert [*encoder.state_dict()] == names
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.requires_grad for parameter in lora.parameters())

    blocks = encoder.transformer.resblocks
    width = blocks[0].attn.embed_dim
    trained = sum(parameter.numel() for parameter in lora.parameters())
    assert trained == len(blocks) * 2 * 3 * RANK * width


def test_dropout_acts_on_the_input_of_the_factors_alone(encoder, pictures):
    lora = adapted(encoder, dropout=0.25)
    layer = lora.layers[0]
    x = torch.ones(5000, layer.down.shape[-1])
    bias = torch.zeros(3 * x.shape[1])
    change = layer.project(x, bias) - x @ layer.original.T
    expected = x @ layer.delta().T

    # Each input is dropped with the rate, and scaled up so that the mean stays.
    torch.testing.assert_close(change.mean(0), expected[0], rtol=0, atol=0.02)
    assert change.std(0).min() > 0
    parts = change.chunk(3, dim=1)
    assert not torch.allclose(parts[0].sum(1) - parts[0].sum(1).mean(), parts[1].sum(1))
    assert lora.has_dropout()


def test_a_copy_of_the_encoder_computes_with_its_own_factors(encoder, pictures):
    adapted(encoder)
    twin = copy.deepcopy(encoder)
    layer = twin.transformer.resblocks[0].attn.lora_layer
    assert layer is not encoder.transformer.resblocks[0].attn.lora_layer

    before = encoder.train()(pictures)
    layer.up.data += 1
    assert torch.equal(encoder.train()(pictures), before)
    assert not torch.equal(twin.train()(pictures), before)


def test_a_resnet_is_refused_with_a_remedy():
    resnet = torch.nn.Module()
    for number in range(1, 5):
        setattr(resnet, f"layer{number}", torch.nn.Sequential())
    with pytest.raises(CarftError, match="lora_rank is 2, which needs .* Set it to 0"):
        LoRA(resnet, RANK, ALPHA, 0.0)
