"""Finding algorithms and data sets by name."""

from __future__ import annotations

import pytest
from domainbed import algorithms, datasets
from domainbed.lib.usage import UnknownNameError

from . import fakes


@pytest.mark.parametrize("name", ["stil", "torch", "ALGORITHMS", "Any", "text", "_Still"])
def test_an_unknown_algorithm_is_refused_with_the_valid_names(registered, monkeypatch, name):
    monkeypatch.setattr(algorithms, "_Still", fakes.Still, raising=False)
    with pytest.raises(UnknownNameError, match="Valid: Still, LinearSGD, Breaks$"):
        algorithms.get_algorithm_class(name)


@pytest.mark.parametrize("name", ["pacs", "os", "TensorDataset", "DATASETS", "_Noise"])
def test_an_unknown_data_set_is_refused_with_the_valid_names(name):
    with pytest.raises(UnknownNameError, match=f"no data set is called '{name}'.*Valid: Debug28, "):
        datasets.get_dataset_class(name)


@pytest.mark.parametrize("name", ["Mixup", "URM"])
def test_upstreams_other_algorithms_are_answered_with_what_to_use(registered, monkeypatch, name):
    message = f"algorithm {name} is not included; use one of Still, Linear.*checkout of facebook"
    with pytest.raises(UnknownNameError, match=message):
        algorithms.get_algorithm_class(name)
    monkeypatch.setattr(algorithms, name, fakes.Still, raising=False)  # a plugin's
    assert algorithms.get_algorithm_class(name) is fakes.Still
    with pytest.raises(UnknownNameError, match="WILDSFMoW is not included; use another one "):
        datasets.get_dataset_class("WILDSFMoW")
