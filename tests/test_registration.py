"""The switch, registering by hand, the real modules: each in an interpreter of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_checkout import OURS, REPO, Site, run_python, write_checkout, write_start_hook

from domainbed_carft.method import hparams
from domainbed_carft.plugin import additions


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path / "my checkout's root")


def test_the_switch(site: Site, checkout: Path) -> None:
    off = {"DOMAINBED_CARFT_DISABLE": "YES"}
    assert site.train("ERM", cwd=checkout, **off)["algorithms"] == ["ERM"]
    done = site.run("-c", "import domainbed", **off)
    assert "No module named 'domainbed'" in done.stderr
    for value in ("", "0", "false"):
        assert site.train(cwd=checkout, DOMAINBED_CARFT_DISABLE=value)["class"] == "CARFT"


def test_registering_by_hand_raises_what_the_hook_only_warns_of(site: Site, checkout: Path) -> None:
    (site.package / "method" / "algorithms.py").write_text("raise RuntimeError('planted')\n")
    code = "import domainbed.algorithms, domainbed_carft; domainbed_carft.register()"
    done = site.run("-c", code, cwd=checkout, DOMAINBED_CARFT_DISABLE="1")
    assert done.stderr.endswith("CarftError: domainbed.algorithms cannot be extended: planted\n")


# With nothing faked


def test_the_real_modules_in_the_harness(tmp_path: Path) -> None:
    hook = write_start_hook(tmp_path / "hook")
    code = """
import json
from domainbed import algorithms, datasets, hparams_registry
names = ["CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot"]
print(json.dumps([
    algorithms.__file__,
    [algorithms.get_algorithm_class(name).__name__ for name in names],
    sorted(set(names) - set(algorithms.ALGORITHMS)),
    datasets.get_dataset_class("EmojiStyles").__name__,
    hparams_registry.default_hparams("CARFT", "EmojiStyles"),
    hparams_registry.random_hparams("CARFT", "EmojiStyles", 3),
]))
"""
    done = run_python("-c", code, cwd=tmp_path, path=[hook, REPO])
    assert done.returncode == 0, done.stderr
    file, classes, missing, dataset, defaults, drawn = json.loads(done.stdout)
    assert os.path.samefile(file, REPO / "third_party" / "domainbed" / "algorithms.py")
    assert (classes, missing, dataset) == (OURS, [], "EmojiStyles")
    assert defaults["clip_backbone"] == drawn["clip_backbone"] == "tiny"
    assert {"batch_size", "data_augmentation", "class_balanced"} <= defaults.keys()


def test_numpy_values_of_a_hosts_registry_are_stored_as_pythons() -> None:
    """Upstream draws some by RandomState.choice; no restricted reader would read those back."""
    theirs = {"resnet_dropout": np.float64(0.1), "count": np.int64(3), "name": "x"}
    drawn = additions._overlaid(lambda algorithm, dataset, seed: theirs, hparams, 1)
    found = drawn("CARFT", "PACS", 1)
    assert [type(found[key]) for key in theirs] == [float, int, str]
