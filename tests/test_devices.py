"""The computing device: a CUDA or ROCm GPU if there is one, otherwise the CPU."""

import pytest
import torch

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.machine import devices


@pytest.mark.parametrize(
    ("accelerator", "device", "backend"),
    [("cuda", "cuda", "cpu:gloo,cuda:nccl"), (None, "cpu", "gloo"), ("mps", "cpu", "gloo")],
)
@pytest.mark.filterwarnings("ignore:devices of the type mps")
def test_default_device_is_supported_gpu_or_cpu(monkeypatch, accelerator, device, backend):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(accelerator))
    assert devices.default_device() == torch.device(device)
    assert devices.process_group_backend() == backend
    assert devices.is_gpu("cuda:3") and not devices.is_gpu("cpu")


@pytest.mark.parametrize("name", ["mps", "meta"])
def test_unsupported_device_raises_error_with_its_type(name):
    with pytest.raises(CarftError, match=f"--device {name} .*type {name} .* cuda"):
        devices.choose_device(name)


@pytest.mark.parametrize("kernel", ["x86_64 Kernel Module", "Open Kernel Module for x86_64"])
def test_gpu_driver_version_is_read_from_proc(tmp_path, kernel):
    assert machine.gpu_driver(tmp_path) == ""
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    line = f"NVRM version: NVIDIA UNIX {kernel}  570.86.15  Thu Jan 23 2025"
    version.write_text(f"{line}\nGCC version: 12.3.0\n")
    assert machine.gpu_driver(tmp_path) == "570.86.15"
