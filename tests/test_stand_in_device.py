"""The stand-in for a GPU: values equal to the CPU's, and detection of errors on a GPU."""

import copy

import pytest
import stand_in_device
import torch
from stand_in_device import MixedDevicesError
from torch import nn
from torch.nn import functional as F


def on_both(stand_in, *shape):
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return plain, plain.to(stand_in)


def train_network(device):
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


def test_trained_weights_equal_cpu_weights_bitwise(stand_in):
    network = copy.deepcopy(train_network(stand_in))
    assert {parameter.device.type for parameter in network.parameters()} == {"standin"}
    expected = train_network("cpu").state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor.cpu(), expected[name])


MIXTURES = {
    "sum": lambda plain, x: x + plain,
    "cpu first": lambda plain, x: plain * x,
    "join of scalars": lambda plain, x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "in place": lambda plain, x: x.add_(plain),
    "scalar of the cpu in place": lambda plain, x: torch.tensor(1.0).add_(x[0, 0]),
    "several in one call": lambda plain, x: torch._foreach_add_([x], [plain]),
    "loss": lambda plain, x: F.cross_entropy(x, torch.tensor([0, 1])),
    "index": lambda plain, x: plain[x[0].long()],
    "values by index": lambda plain, x: x.__setitem__(torch.tensor([0, 1]), plain),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_operation_with_mixed_devices_raises_error(stand_in, mixture):
    with pytest.raises(MixedDevicesError):
        MIXTURES[mixture](*on_both(stand_in, 2, 2))


WAITS = {
    "_local_scalar_dense": lambda x: float(x.sum()),
    "nonzero": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "index": lambda x: x[torch.tensor([0, 1])],
    "_copy_from": lambda x: torch.tensor([1.0], device=x.device),
    "index_put_": lambda x: x.__setitem__(x > 0, x.sum()),
    "_to_copy": lambda x: x.tolist(),
    "copy_": lambda x: torch.empty(2).to(x.device),
}


@pytest.mark.parametrize("operation", WAITS)
def test_waiting_operation_is_recorded(stand_in, operation):
    _, tensor = on_both(stand_in, 2, 2)
    with stand_in_device.record_waits() as waits:
        WAITS[operation](tensor)
    assert operation in waits


def test_refused_waits_raise_error_except_for_non_blocking_copies(stand_in):
    plain, tensor = on_both(stand_in, 2, 2)
    with stand_in_device.refuse_waits():
        moved = plain.to(stand_in, non_blocking=True)
        result = torch.where(tensor > 0, tensor, moved * torch.tensor(3.0))
        tensor.copy_(result[torch.arange(2, device=stand_in)])
    with (
        pytest.raises(RuntimeError, match="a synchronizing CUDA operation: _to_copy"),
        stand_in_device.refuse_waits(),
    ):
        tensor.cpu()
