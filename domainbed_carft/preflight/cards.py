"""How fast cards multiply matrices, by their makers' data sheets: dense, without sparsity."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

import torch

from domainbed_carft.machine import devices
from domainbed_carft.preflight import device as job_device

_NVIDIA_SHEET = "NVIDIA's data sheet"
_MEASURED_SIDE = 1024
_MEASURED_SECONDS = 0.3


class Card(NamedTuple):
    """A card by words of the name that torch gives it, and its peaks in TFLOP/s.

    ``bf16``: of the tensor or matrix cores, accumulated in float32; None where they have no bf16.
    ``float32``: without TF32, which torch does not use for matrices by default.
    """

    name: str
    bf16: float | None
    float32: float
    source: str


class Peak(NamedTuple):
    """The fastest that a device multiplies matrices in some precision, and how that is known."""

    flops: float  # a second
    source: str


# The first whose words are in the name of the device counts.
CARDS = (
    Card("B200", 2250, 75, f"{_NVIDIA_SHEET} of the DGX B200, an eighth"),
    Card("H200", 989.5, 67, _NVIDIA_SHEET),
    Card("GH200", 989.5, 67, _NVIDIA_SHEET),
    Card("H100 PCIe", 756, 51, _NVIDIA_SHEET),
    Card("H100 NVL", 835.5, 60, _NVIDIA_SHEET),
    Card("H100", 989.5, 67, f"{_NVIDIA_SHEET} of the SXM5"),
    Card("A100", 312, 19.5, _NVIDIA_SHEET),
    Card("A800", 312, 19.5, _NVIDIA_SHEET),
    Card("A30", 165, 10.3, _NVIDIA_SHEET),
    Card("A40", 149.7, 37.4, _NVIDIA_SHEET),
    Card("A10", 125, 31.2, _NVIDIA_SHEET),
    Card("RTX A6000", 154.8, 38.7, f"{_NVIDIA_SHEET}; bf16 from the whitepaper on GA102"),
    Card("L40S", 362, 91.6, _NVIDIA_SHEET),
    Card("L40", 181, 90.5, _NVIDIA_SHEET),
    Card("L4", 121, 30.3, f"{_NVIDIA_SHEET}, half of the figure with sparsity"),
    Card("RTX 5090", 209.5, 104.8, "NVIDIA's whitepaper on Blackwell for RTX"),
    Card("RTX 4090", 165.2, 82.6, "NVIDIA's whitepaper on Ada"),
    Card("RTX 3090", 71, 35.6, "NVIDIA's whitepaper on GA102"),
    Card("V100", None, 15.7, f"{_NVIDIA_SHEET} of the SXM2"),
    Card("T4", None, 8.1, _NVIDIA_SHEET),
    Card("MI300X", 1307.4, 163.4, "AMD's data sheet, as matrices"),
    # Each of its two dies is a device of its own.
    Card("MI250X", 191.5, 47.9, "half of AMD's data sheet, as matrices"),
)


def peak_of(device_name: str, precision: str) -> Peak | None:
    """The peak of a device by the data sheets; None if they do not have it.

    ``precision``: "bf16" or "off", as the hparam amp.
    """
    for card in CARDS:
        if re.search(rf"\b{card.name}\b", device_name):  # an A10G is no A10
            teraflops = card.bf16 if precision == "bf16" else card.float32
            return Peak(teraflops * 1e12, card.source) if teraflops else None
    return None


def measured_peak(precision: str) -> Peak:
    """How fast this device multiplies two square matrices, where no data sheet says it."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = _MEASURED_SIDE
    matrix = torch.ones(side, side, dtype=dtype, device=devices.default_device())
    matrix @ matrix  # the first one takes longer
    job_device.wait()

    count = 0
    started = time.monotonic()
    while time.monotonic() - started < _MEASURED_SECONDS:
        matrix @ matrix
        job_device.wait()
        count += 1
    seconds = time.monotonic() - started
    return Peak(2 * side**3 * count / seconds, f"a product of matrices of {side} measured here")
