"""All methods, and options that any of them may have, for the tests of shared properties."""

from __future__ import annotations

from typing import Any

import pytest

from domainbed_carft.jobs.algorithms import ALGORITHMS

SWAD = {"average": "swad", "swad_converge": 1, "swad_tolerance": 1}
TERMS = ("sp", "fd", "ldifs", "lipsum", "miro")
ALL_TERMS = {f"{term}_weight": 0.5 for term in TERMS}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "all terms": ("CARFT", {**ALL_TERMS, "average": "ema", "checkpoint_blocks": True}),
    "captions": ("StarFT", {"starft_rows": "captions", "lipsum_weight": 0.5}),
    "swad": ("CARFT", SWAD),
    "flyp with swad": ("FLYP", SWAD),
    "linear probing first": ("CLIPLPFT", {**ALL_TERMS, "average": "sma", "average_start": 1}),
    "wise-ft of an average": ("CLIPWiSEFT", {"average": "beta", "head_scale": "outside"}),
    "random head": ("CARFT", {"head_init": "random"}),
    "lora": ("CARFT", {"lora_rank": 2, "average": "ema"}),
}
CASES = {**{name: (name, {}) for name in ALGORITHMS}, **OPTIONS}
SLOW_CASES = ("FDAlign", *OPTIONS.keys() - {"all terms", "lora", "swad"})

# An argument of a test for each case.
PARAMETERS = [
    pytest.param(case, marks=[pytest.mark.slow] if case in SLOW_CASES else []) for case in CASES
]
