"""LoRA of the image encoder: its formula, what it trains, and what a run of it leaves."""

import copy

import pytest
import torch
from domainbed.lib import algorithm_state
from runs_jobs import train_job
from test_algorithms import make, minibatches, same_state, settings

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms, averages
from domainbed_carft.method.lora import LoRA, merged_weights
from domainbed_carft.runs import saved, soup

RANK = 2
SCALE = 0.7


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return copy.deepcopy(backbone.load("tiny").model.visual).float()


@pytest.fixture
def pictures(encoder):
    return torch.randn(3, 3, encoder.input_resolution, encoder.input_resolution)


def adapted(encoder, dropout=0.0):
    """LoRA with factors that are not zero, not merged yet."""
    lora = LoRA(encoder, RANK, SCALE, dropout)
    generator = torch.Generator().manual_seed(1)
    for layer in lora.layers:
        layer.up.data = torch.randn(layer.up.shape, generator=generator) * 0.05
    return lora


def test_new_factors_change_nothing(encoder, pictures):
    expected = encoder(pictures)
    lora = LoRA(encoder, RANK, SCALE, 0.25)
    lora.merge(encoder)
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


def test_merged_weights_predict_what_training_computes(encoder, pictures):
    lora = adapted(encoder)
    trained_on = encoder.train()(pictures)
    lora.merge(encoder)
    torch.testing.assert_close(encoder.eval()(pictures), trained_on, rtol=1e-4, atol=1e-5)


def test_only_the_factors_are_trained_and_names_of_the_encoder_stay(encoder):
    names = [*encoder.state_dict()]
    lora = LoRA(encoder, RANK, SCALE, 0.25)
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
        LoRA(resnet, RANK, SCALE, 0.0)


# The random "tiny" CLIP of the tests, and rates that move its factors far.
JOB = {"lora_rank": RANK, "lr": 1e-2}


def test_steps_move_the_factors_and_merged_weights_alone(random_tiny):
    algorithm = make(random_tiny, "CARFT", **JOB)
    start = {name: tensor.clone() for name, tensor in algorithm.encoder.state_dict().items()}
    for seed in range(2):
        algorithm.update(minibatches(seed))

    for name, tensor in algorithm.encoder.state_dict().items():
        is_adapted = name.endswith("attn.in_proj_weight")
        assert torch.equal(tensor, start[name]) != is_adapted, name
    for weight, layer in zip(merged_weights(algorithm.encoder), algorithm.lora.layers):
        torch.testing.assert_close(weight, layer.original + layer.delta())


@pytest.mark.parametrize(
    ("hparams", "scale"),
    [
        ({}, 0.5**0.5),  # as in the released code, at rank 2 and alpha 1
        ({"lora_scaling": "alpha/r"}, 0.5),
        ({"lora_rank": 4, "lora_alpha": 3.0}, 1.5),
        ({"lora_rank": 4, "lora_alpha": 3.0, "lora_scaling": "alpha/r"}, 0.75),
    ],
)
def test_what_the_factors_add_has_the_scale_of_the_hparams(random_tiny, hparams, scale):
    algorithm = make(random_tiny, "CARFT", **{**JOB, **hparams})
    start = [weight.detach().clone() for weight in merged_weights(algorithm.encoder)]
    for seed in range(3):
        algorithm.update(minibatches(seed))

    for weight, original, layer in zip(
        merged_weights(algorithm.encoder), start, algorithm.lora.layers, strict=True
    ):
        for part, original_part, up, down in zip(
            weight.double().chunk(3), original.double().chunk(3), layer.up, layer.down
        ):
            added = scale * up.double() @ down.double()
            torch.testing.assert_close(part, original_part + added, rtol=1e-5, atol=1e-6)
            assert added.abs().max() > 1e-4


@pytest.mark.parametrize("average", ["none", "sma", "ema", "beta"])
def test_averages_and_wise_ft_are_those_of_the_merged_weights(random_tiny, average):
    hparams = {**JOB, "average": average, "average_start": 1, "wise_alpha": 0.5, "total_steps": 3}
    algorithm = make(random_tiny, "CARFT", **hparams)
    name = "encoder.transformer.resblocks.0.attn.in_proj_weight"
    weight = merged_weights(algorithm.encoder)[0]
    start = weight.detach().double().clone()
    mean = start.clone()
    for step in range(1, 4):
        algorithm.update(minibatches(step))
        share = averages.share(step, algorithm.hparams) if average != "none" else 1.0
        mean += share * (weight.detach().double() - mean)

    expected = (start + mean) / 2
    torch.testing.assert_close(
        algorithm.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6
    )


def test_a_run_resumes_to_the_bit(random_tiny):
    hparams = {**JOB, "average": "ema"}
    structure = algorithm_state.structure(make(random_tiny, "CARFT", **hparams))
    undisturbed = make(random_tiny, "CARFT", **hparams)
    for seed in range(4):
        torch.manual_seed(seed)
        undisturbed.update(minibatches(seed))

    stopped = make(random_tiny, "CARFT", **hparams)
    for seed in range(2):
        torch.manual_seed(seed)
        stopped.update(minibatches(seed))
    resumed = make(random_tiny, "CARFT", **hparams)
    algorithm_state.restore(resumed, copy.deepcopy(algorithm_state.capture(stopped, structure)))
    for seed in range(2, 4):
        torch.manual_seed(seed)
        resumed.update(minibatches(seed))
    assert same_state(resumed, undisturbed)


@pytest.mark.parametrize(
    ("algorithm", "hparams", "message"),
    [
        ("FLYP", {}, "lora_rank is 2, expected 0: FLYP has no LoRA"),
        ("CaRot", {}, "lora_rank is 2, expected 0: CaRot has no LoRA"),
        ("CLIPLinearProbe", {}, "lora_rank is 2, expected 0: CLIPLinearProbe has no LoRA"),
        ("CLIPL2SP", {}, r"sp_weight is 0\.5, expected 0 with LoRA"),
        ("CARFT", {"compile_blocks": True}, "compile_blocks is True, expected False with LoRA"),
        ("CARFT", {"lora_dropout": 1}, r"lora_dropout is 1, expected a number in \[0, 1\)"),
    ],
)
def test_what_lora_does_not_go_with_is_refused_by_name(random_tiny, algorithm, hparams, message):
    values = settings(random_tiny, algorithm, **JOB, **hparams)
    with pytest.raises(CarftError, match=message):
        getattr(algorithms, algorithm)((3, 28, 28), 3, 2, values)


def test_a_saved_run_of_lora_is_a_run_for_the_commands(pets, tmp_path):
    job = train_job(tmp_path / "lora", pets / "my pets", "CARFT", **JOB)
    content = torch.load(job / "model.pkl", weights_only=True)["model_dict"]
    run = saved.open_run(job / "model.pkl")
    state = run.algorithm.state_dict()
    assert not any(name.startswith("lora.") for name in state)
    assert all(torch.equal(state[name], content[name]) for name in state)

    soups = soup.soup([job, pets / "CARFT"], workers=0)
    assert len(soups.uniform.members) == 2


def test_runs_from_before_lora_still_open(pets, tmp_path):
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    for name in ("lora_rank", "lora_alpha", "lora_scaling", "lora_dropout"):
        del content["model_hparams"][name]
    torch.save(content, tmp_path / "old.pkl")
    assert saved.open_run(tmp_path / "old.pkl").classes == content_classes(pets)


def content_classes(pets):
    return saved.open_run(pets / "CARFT" / "model.pkl").classes
