"""The stand-in for a GPU: its values are the processor's, and it catches what a GPU would."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed_carft.machine import stand_in_device
from domainbed_carft.machine.stand_in_device import MixedDevicesError, StandInTensor


@pytest.fixture(autouse=True)
def stand_in():
    with stand_in_device.installed() as device:
        yield device


def on_both(stand_in, *shape):
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return plain, plain.to(stand_in)


def same(tensor, expected):
    return torch.equal(tensor.content, expected)


# Values


def trained_network(device):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 2))
    x = torch.randn(6, 3, 5, 5)
    y = torch.arange(6) % 2
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(network(x.to(device)), y.to(device)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network


def test_training_gives_the_processors_weights_to_the_bit(stand_in):
    network = trained_network(stand_in)
    expected = trained_network("cpu").state_dict()
    assert all(parameter.grad.device.type == "standin" for parameter in network.parameters())
    assert all(same(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_a_module_that_moves_keeps_its_parameters(stand_in):
    layer = nn.Linear(2, 2)
    weight = layer.weight
    layer.to(stand_in)
    assert layer.weight is weight and isinstance(weight, nn.Parameter)
    assert copy.deepcopy(layer).weight.device == weight.device == torch.device("standin:0")
    layer.to("cpu")
    assert layer.weight is weight and weight.device == torch.device("cpu")


def test_views_and_operations_in_place_change_the_same_values(stand_in):
    plain, tensor = on_both(stand_in, 3, 4)
    for x in (plain, tensor):
        x[1].mul_(2)
        x.T[0] = 7.0
        torch.add(x, 1, out=x)
    assert same(tensor, plain)
    assert tensor.add_(1) is tensor


def test_new_tensors_are_where_they_are_asked_for(stand_in):
    assert torch.tensor([1.0, 2.0], device=stand_in).tolist() == [1, 2]
    made = [torch.arange(3, device=stand_in), torch.eye(2, device=stand_in)]
    made += [torch.zeros_like(made[0]), made[0].new_ones(2), torch.randn(2, device=stand_in)]
    assert {type(tensor) for tensor in made} == {StandInTensor}
    assert type(torch.zeros_like(made[0], device="cpu")) is torch.Tensor


def test_a_saved_tensor_returns_to_its_device_or_to_another(stand_in):
    plain, tensor = on_both(stand_in, 2)
    file = io.BytesIO()
    torch.save({"x": tensor}, file)
    for location, expected in ((None, "standin"), ("cpu", "cpu")):
        file.seek(0)
        loaded = torch.load(file, map_location=location, weights_only=True)["x"]
        assert loaded.device.type == expected and torch.equal(loaded.cpu(), plain)


# Mistakes

MIXTURES = {
    "sum": lambda plain, x: x + plain,
    "processor first": lambda plain, x: plain * x,
    "product": lambda plain, x: x @ plain,
    "choice": lambda plain, x: torch.where(x > 0, x, plain),
    "join": lambda plain, x: torch.cat([x, plain]),
    "join of scalars": lambda plain, x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "in place": lambda plain, x: x.add_(plain),
    "processor in place": lambda plain, x: plain.add_(x),
    "processor's scalar in place": lambda plain, x: torch.tensor(1.0).add_(x[0, 0]),
    "several in one call": lambda plain, x: torch._foreach_add_([x], [plain]),
    "loss": lambda plain, x: F.cross_entropy(x, torch.tensor([0, 1])),
    "embedding": lambda plain, x: F.embedding(torch.tensor([0, 1]), x),
    "layer": lambda plain, x: nn.Linear(2, 2)(x),
    "index": lambda plain, x: plain[x[0].long()],
    "values by index": lambda plain, x: x.__setitem__(torch.tensor([0, 1]), plain),
    "numpy": lambda plain, x: x.numpy(),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_what_mixes_devices_is_refused(stand_in, mixture):
    plain, tensor = on_both(stand_in, 2, 2)
    with pytest.raises((MixedDevicesError, TypeError, RuntimeError)) as raised:
        MIXTURES[mixture](plain, tensor)
    is_torchs_own = mixture == "numpy"
    assert is_torchs_own or raised.type is MixedDevicesError


def test_scalars_of_the_processor_are_accepted_without_a_wait(stand_in):
    plain, tensor = on_both(stand_in, 2, 2)
    scalar = torch.tensor(3.0)
    with stand_in_device.recorded_waits() as waits:
        results = [tensor * scalar, scalar - tensor, tensor.clone().mul_(scalar)]
    assert not waits
    expected = [plain * 3, 3 - plain, plain * 3]
    assert all(same(result, value) for result, value in zip(results, expected))


WAITS = {
    "_local_scalar_dense": [
        lambda x: x[0, 0].item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
    ],
    "nonzero": [lambda x: x.nonzero(), lambda x: torch.where(x > 0)],
    "masked_select": [lambda x: x.masked_select(x > 0)],
    "index": [lambda x: x[x > 0], lambda x: x[torch.tensor([0, 1])]],
    "_copy_from": [lambda x: x[[1, 0]], lambda x: torch.tensor([1.0], device=x.device)],
    "index_put_": [lambda x: x.__setitem__(x > 0, x.sum())],  # a number has no wait in torch 2.15
    "equal": [lambda x: torch.equal(x, x)],
    "_unique2": [lambda x: x.unique()],
    "_to_copy": [lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.to("cpu", torch.half)],
    "copy_": [
        lambda x: torch.empty(2, 2).copy_(x),
        lambda x: x.copy_(torch.empty(2, 2)),
        lambda x: torch.empty(2).to(x.device),
    ],
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_recorded_by_their_operation(stand_in, name):
    for operation in WAITS[name]:
        _, tensor = on_both(stand_in, 2, 2)
        with stand_in_device.recorded_waits() as waits:
            operation(tensor)
        assert name in waits


def test_computation_and_copies_that_do_not_block_are_no_waits(stand_in):
    plain, tensor = on_both(stand_in, 2, 2)
    with stand_in_device.refused_waits():
        moved = plain.to(stand_in, non_blocking=True)
        tensor.masked_fill(tensor > 0, 1.0).argmax(dim=1)
        torch.where(tensor > 0, tensor, moved)[torch.arange(2, device=stand_in)]
        tensor.copy_(moved)
    with (
        pytest.raises(RuntimeError, match="a synchronizing CUDA operation: _to_copy"),
        stand_in_device.refused_waits(),
    ):
        tensor.cpu()
