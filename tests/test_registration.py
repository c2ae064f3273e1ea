"""The switch, registering by hand, the real modules: each in an interpreter of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fake_checkout import (
    OUR_HPARAMS,
    OURS,
    REPO,
    Site,
    run_python,
    write_checkout,
    write_start_hook,
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path / "my checkout's root")


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_the_switch(site: Site, checkout: Path, value: str) -> None:
    off = {"DOMAINBED_CARFT_DISABLE": value}
    assert site.train("ERM", cwd=checkout, **off)["algorithms"] == ["ERM"]
    done = site.run("-m", "domainbed.scripts.train", "CARFT", cwd=checkout, **off)
    assert done.stderr.endswith("NotImplementedError: CARFT\n")
    done = site.run("-c", "import domainbed", **off)
    assert "No module named 'domainbed'" in done.stderr


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_the_switch_left_on(site: Site, checkout: Path, value: str) -> None:
    assert site.train(cwd=checkout, DOMAINBED_CARFT_DISABLE=value)["class"] == "CARFT"


SNAPSHOT = """
import json, sys
def snapshot():
    from domainbed import algorithms, command_launchers, datasets, hparams_registry
    owners = [algorithms, command_launchers, datasets, hparams_registry]
    owners += [datasets.MultipleEnvironmentImageFolder, datasets.Pets]
    owners += [type(algorithms.__loader__), sys.meta_path, algorithms.__loader__]
    return [
        (list(owner) if isinstance(owner, list) else dict(vars(owner))) for owner in owners
    ] + [list(algorithms.ALGORITHMS), list(datasets.DATASETS), dict(command_launchers.REGISTRY)]
def same(one, other):
    def names(part):
        return {k: id(v) for k, v in part.items()} if isinstance(part, dict) else part
    return [names(part) for part in one] == [names(part) for part in other]
"""


def test_late_registration_and_its_reversal(site: Site, checkout: Path) -> None:
    code = f"""{SNAPSHOT}
import domainbed_carft
from domainbed import algorithms, datasets, hparams_registry
before = snapshot()
domainbed_carft.register()
first = snapshot()
domainbed_carft.register()
assert same(first, snapshot()), "registering twice is not registering once"
added = algorithms.ALGORITHMS + datasets.DATASETS
hparams = hparams_registry.default_hparams("CARFT", "Pets")
domainbed_carft.unregister()
assert same(before, snapshot()), "something of ours stayed"
domainbed_carft.unregister()
assert same(before, snapshot())
domainbed_carft.register()
print(json.dumps([added, hparams, algorithms.get_algorithm_class("CARFT").__name__]))
"""
    result = site.json("-c", code, cwd=checkout, DOMAINBED_CARFT_DISABLE="1")
    assert result == [["ERM", *OURS, "Pets", "EmojiStyles"], OUR_HPARAMS, "CARFT"]


def test_what_the_start_hook_did_is_reversed(site: Site, checkout: Path) -> None:
    code = """
import json, sys
import domainbed_carft
from domainbed import algorithms, datasets, hparams_registry
domainbed_carft.unregister()
owners = (algorithms, datasets, hparams_registry, datasets.MultipleEnvironmentImageFolder)
print(json.dumps([
    [sorted(name for name in vars(owner) if name[:2] != "__") for owner in owners],
    [algorithms.ALGORITHMS, datasets.DATASETS],
    [f.__code__.co_filename for f in (hparams_registry.random_hparams, owners[-1].__init__)],
    ["domainbed_carft" in type(finder).__module__ for finder in sys.meta_path].count(True),
]))
"""
    hooked = site.json("-c", code, cwd=checkout)
    off = site.json("-c", code, cwd=checkout, DOMAINBED_CARFT_DISABLE="1")
    assert hooked == off
    assert hooked[3] == 0


def test_unregistering_leaves_alone_what_others_changed_since(site: Site, checkout: Path) -> None:
    code = """
import json
import domainbed_carft
from domainbed import algorithms, hparams_registry
inner = hparams_registry.random_hparams
hparams_registry.random_hparams = lambda *arguments: inner(*arguments)
outer = hparams_registry.random_hparams
domainbed_carft.unregister()
print(json.dumps([hparams_registry.random_hparams is outer, algorithms.ALGORITHMS]))
"""
    assert site.json("-c", code, cwd=checkout) == [True, ["ERM"]]


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
