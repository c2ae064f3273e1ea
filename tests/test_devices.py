"""Which device computes: a GPU of CUDA or ROCm, else the processor; others are refused."""

import pytest
import torch

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.machine import devices
from domainbed_carft.runs import predictions


@pytest.mark.parametrize(
    ("found", "device", "backend"),
    [("cuda", "cuda", "cpu:gloo,cuda:nccl"), (None, "cpu", "gloo"), ("mps", "cpu", "gloo")],
)
@pytest.mark.filterwarnings("ignore")
def test_the_gpu_computes_if_there_is_one(monkeypatch, found, device, backend):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(found))
    assert devices.default_device() == torch.device(device)
    assert devices.process_group_backend() == backend
    assert devices.is_gpu("cuda:3") and not devices.is_gpu("cpu")
    if found == "mps":
        message = "the type mps are not supported; .* CUDA or ROCm"
        with pytest.warns(UserWarning, match=message):
            devices.default_device()


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_another_accelerator_is_refused_by_its_type(name):
    with pytest.raises(CarftError, match=f"--device {name} .*type {name} are not supported.* cuda"):
        predictions.choose_device(name)


@pytest.mark.parametrize("kernel", ["x86_64 Kernel Module", "Open Kernel Module for x86_64"])
def test_the_driver_is_read_where_it_is_loaded(tmp_path, kernel):
    assert machine.gpu_driver(tmp_path) == ""
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    line = f"NVRM version: NVIDIA UNIX {kernel}  570.86.15  Thu Jan 23 2025"
    version.write_text(f"{line}\nGCC version: 12.3.0\n")
    assert machine.gpu_driver(tmp_path) == "570.86.15"
