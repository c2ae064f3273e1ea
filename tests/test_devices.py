"""Which device computes: a GPU of CUDA or ROCm, else the processor; others are refused."""

import pytest
import torch

from domainbed_carft import doctor, machine
from domainbed_carft.errors import CarftError
from domainbed_carft.machine import devices
from domainbed_carft.runs import predictions


def with_accelerator(monkeypatch, device):
    """Let torch find this accelerator; None for a machine without one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(device))


@pytest.mark.parametrize(("found", "expected"), [("cuda", "cuda"), (None, "cpu")])
def test_the_gpu_computes_if_there_is_one(monkeypatch, found, expected):
    with_accelerator(monkeypatch, found)
    assert devices.default_device() == torch.device(expected)
    assert devices.process_group_backend() == ("cpu:gloo,cuda:nccl" if found else "gloo")


@pytest.mark.parametrize("found", ["mps", "xpu"])
def test_another_accelerator_leaves_the_work_to_the_processor_with_a_warning(monkeypatch, found):
    with_accelerator(monkeypatch, found)
    with pytest.warns(UserWarning, match=f"the type {found} are not supported; .* CUDA or ROCm"):
        assert devices.default_device() == devices.CPU


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_another_accelerator_is_refused_by_its_type(name):
    with pytest.raises(CarftError, match=f"--device {name} .*type {name} are not supported.* cuda"):
        predictions.choose_device(name)


def test_every_number_of_a_gpu_is_a_gpu():
    assert devices.is_gpu("cuda:3") and not devices.is_gpu("cpu")


def test_the_driver_is_read_where_it_is_loaded(tmp_path):
    assert machine.gpu_driver(tmp_path) == ""

    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025"
    version.write_text(f"{line}\nGCC version: 12.3.0\n")
    assert machine.gpu_driver(tmp_path) == "570.86.15"

    version.write_text(line.replace("x86_64 Kernel Module", "Open Kernel Module for x86_64"))
    assert machine.gpu_driver(tmp_path) == "570.86.15"


def test_doctor_names_capability_runtime_and_driver_of_a_gpu(monkeypatch):
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    facts = devices.GPUFacts("NVIDIA H100", 80 * 10**9, (9, 0))
    monkeypatch.setattr(devices, "gpu_facts", lambda index: facts)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(machine, "gpu_driver", lambda: "570.86")

    (finding,) = doctor.check_device()
    expected = "NVIDIA H100, 80 GB, compute capability 9.0; CUDA 12.8, driver 570.86"
    assert finding.found == expected
