"""The plugin beside small checkouts of DomainBed, each case in an interpreter of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_checkout import HOST, OUR_HPARAMS, OURS, Site, write_checkout

from domainbed_carft.method import hparams
from domainbed_carft.plugin import additions


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path / "my checkout's root")


def of(folder: Path) -> str:
    return str(folder / "domainbed" / "algorithms.py")


# Which domainbed is used


def test_a_checkout_in_the_current_folder_is_extended(site: Site, checkout: Path) -> None:
    assert site.train(cwd=checkout) == {
        "file": of(checkout),
        "class": "CARFT",
        "algorithms": ["ERM", *OURS],
        "datasets": ["Pets", "EmojiStyles", "EmojiUnseen"],
        "environments": {
            "Pets": 2,
            "EmojiStyles": 3,
            "EmojiUnseen": 2,
            "DTD": 1,
            "EmojiShift": 1,
            "ImageNet": 1,
        },
        "hparams": OUR_HPARAMS,
    }


@pytest.mark.parametrize("place", ["pythonpath", "wheel", "source tree"])
def test_a_checkout_wins_over_the_harness_which_serves_else(
    site: Site, checkout: Path, place: str
) -> None:
    if place == "pythonpath":
        (site.empty / "domainbed").mkdir()  # does not hide it
        assert site.train(path=(checkout,))["file"] == of(checkout)
        return
    harness = site.package / "harness"
    if place == "source tree":  # has the harness beside the package
        harness = harness.rename(site.folder / "site" / "third_party")
    result = site.train()
    assert (result["file"], result["algorithms"]) == (of(harness), ["ERM", *OURS])


def test_a_finder_appended_after_ours_wins_over_the_harness(site: Site, checkout: Path) -> None:
    code = """
import json, sys
from importlib.machinery import PathFinder
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [sys.argv[1]]) if name == "domainbed" else None
sys.meta_path.append(Editable)
import domainbed.algorithms
print(json.dumps([domainbed.algorithms.__file__, domainbed.algorithms.ALGORITHMS]))
"""
    assert site.json("-c", code, str(checkout)) == [of(checkout), ["ERM", *OURS]]


def test_a_bare_folder_is_named(site: Site) -> None:
    bare = site.empty / "domainbed"
    (bare / "PACS").mkdir(parents=True)
    done = site.run("-m", "domainbed.scripts.train", "CARFT")
    assert done.returncode != 0
    assert f"Python took {bare} for the package 'domainbed'" in done.stderr
    assert "Rename the folder or start in another one" in done.stderr


# The host stays what it was


def test_other_algorithms_keep_their_hparams(site: Site, checkout: Path) -> None:
    code = """
import json
from domainbed import algorithms, hparams_registry as registry
from domainbed_carft.method import arguments
others = [registry.default_hparams("ERM", "Pets"), registry.random_hparams("ERM", "Pets", 14)]
touched = sorted(arguments.ALLOWED)
ours = registry.random_hparams("CARFT", "Pets", seed=14)
print(json.dumps([others, touched, ours, sorted(arguments.ALLOWED)]))
"""
    others, touched, ours, allowed = site.json("-c", code, cwd=checkout)
    assert others == [{"lr": 0.001, "class_balanced": False}, {"lr": 2.0, "class_balanced": False}]
    assert touched == []
    assert ours == {"lr": 14, "kl_weight": 2.0, "class_balanced": False}
    assert allowed == ["class_balanced", "lr"]


def test_class_names_reach_us_by_the_very_hparams_which_stay(site: Site, tmp_path: Path) -> None:
    start = "augment, hparams):\n"
    writes = start + "        hparams['class_names'] = ['by', 'host']\n"  # as DPLCLIP's do
    text = HOST["datasets.py"].replace(start, writes)
    fork = write_checkout(tmp_path / "fork", datasets=text)
    data = site.folder / "data"
    for folder in ("art/cat", "art/dog", "photo/cat", "photo/dog"):
        (data / folder).mkdir(parents=True)
    code = """
import json, sys
from domainbed import datasets
from domainbed_carft.method import dataset_facts
def shown(hparams, name=None):
    seen = dataset_facts.recall(hparams, name)
    return [[e.name, e.classes, e.normalisation] for e in seen.environments]
hparams = {"class_names": "dataset:Pets"}
datasets.Pets(sys.argv[1], [0], hparams)
print(json.dumps([shown(hparams), shown(dict(hparams), "Pets"), hparams]))
"""
    names = ["cat", "dog"]
    normalised = [[0.5, 0.25, 0.0], [2.0, 1.0, 1.0]]
    seen = [["art", names, normalised], ["photo", names, normalised]]
    found = site.json("-c", code, str(data), cwd=fork)
    assert found == [seen, [], {"class_names": "dataset:Pets"}]


@pytest.mark.parametrize("wanted", ["clip", "domainbed", None])
def test_the_protocol_of_our_hparams_is_followed(
    site: Site, checkout: Path, wanted: str | None
) -> None:
    for folder in ("art/cat", "photo/cat"):
        (site.folder / "data" / folder).mkdir(parents=True)
    code = """
import json, sys
from domainbed import datasets
from domainbed_carft.method import dataset_facts
hparams = json.loads(sys.argv[2])
pets = datasets.Pets(sys.argv[1], [0], hparams)
transforms = [e.transform if isinstance(e.transform, list) else "host's" for e in pets.datasets]
print(json.dumps([transforms, dataset_facts.recall(hparams).protocol]))
"""
    hparams = json.dumps({"protocol": wanted} if wanted else {})
    expected = [["host's"] * 2, "host"]
    if wanted == "clip":
        expected = [[["clip", 224, False], ["clip", 224, True]], "clip"]
    assert site.json("-c", code, str(site.folder / "data"), hparams, cwd=checkout) == expected


@pytest.mark.parametrize(
    "module", ["method/algorithms", "method/hparams", "plugin/data_sets", "method/dataset_facts"]
)
def test_our_failure_is_one_warning(site: Site, checkout: Path, module: str) -> None:
    (site.package / f"{module}.py").write_text("raise RuntimeError('planted')\n")
    code = """
import json, sys
from domainbed import algorithms, datasets, hparams_registry
pets = datasets.Pets(sys.argv[1], [0], {})
print(json.dumps([
    algorithms.get_algorithm_class("ERM").__name__,
    hparams_registry.default_hparams("ERM", "Pets")["lr"],
    len(pets.datasets),
]))
"""
    done = site.run("-W", "error", "-c", code, str(checkout.parent), cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[:2] == ["ERM", 0.001]
    assert done.stderr.count("domainbed-carft") == 2
    assert "(RuntimeError: planted)" in done.stderr
    assert "DOMAINBED_CARFT_DISABLE=1 in the environment switches" in done.stderr


def test_a_list_that_takes_no_name_leaves_the_host_as_it_was(site: Site, tmp_path: Path) -> None:
    text = HOST["algorithms.py"].replace('["ERM"]', '("ERM",)')
    fork = write_checkout(tmp_path / "fork", algorithms=text)
    code = "from domainbed import algorithms; print(hasattr(algorithms, 'CARFT'))"
    done = site.run("-c", code, cwd=fork)
    assert done.stdout == "False\n" and "could not extend domainbed.algorithms" in done.stderr


def test_the_hosts_own_failure_stays_its_own(site: Site, tmp_path: Path) -> None:
    broken = write_checkout(tmp_path / "broken", algorithms="import no_such_module\n")
    done = site.run("-c", "import domainbed.algorithms", cwd=broken)
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")
    assert "domainbed-carft" not in done.stderr


def test_a_name_that_the_host_uses_itself_is_left_to_it(site: Site, tmp_path: Path) -> None:
    text = HOST["algorithms.py"] + "\nclass CARFT(Algorithm):\n    theirs = True\n"
    fork = write_checkout(tmp_path / "fork", algorithms=text)
    code = """
import json
from domainbed import algorithms, hparams_registry
print(json.dumps([
    algorithms.CARFT.theirs,
    algorithms.ALGORITHMS,
    hparams_registry.default_hparams("CARFT", "Pets")["lr"],
    hparams_registry.default_hparams("CLIPFineTune", "Pets")["lr"],
]))
"""
    done = site.run("-c", code, cwd=fork)
    assert json.loads(done.stdout) == [True, ["ERM", *OURS[1:]], 0.001, 5e-6]
    assert "domainbed.algorithms has its own CARFT, which stays in use" in done.stderr
    assert "unchanged" not in done.stderr  # all others were added


def test_a_name_that_the_host_imports_for_itself_is_no_alarm(site: Site, tmp_path: Path) -> None:
    """Torchvision's CIFAR100, say: a data set of that name is ours only where nobody else's is."""
    imported = "from json import JSONDecoder as DTD\n"
    fork = write_checkout(tmp_path / "fork", datasets=imported + HOST["datasets.py"])
    code = """
import json, sys
from domainbed import datasets, hparams_registry
found = [hparams_registry.default_hparams("CARFT", name)["lr"] for name in sys.argv[1:]]
print(json.dumps([datasets.DTD is json.JSONDecoder, hasattr(datasets, "EmojiStyles"), found]))
"""
    assert site.json("-c", code, "Pets", cwd=fork) == [True, True, [5e-6]]
    done = site.run("-c", code, "Pets", "DTD", "DTD", cwd=fork)
    assert json.loads(done.stdout) == [True, True, [5e-6, 5e-6, 5e-6]]
    assert done.stderr.count("domainbed.datasets has its own DTD, which stays in use") == 1


def test_our_modules_may_be_imported_first(site: Site, checkout: Path) -> None:
    code = """
import json
import domainbed_carft.method.algorithms, domainbed_carft.plugin.data_sets
from domainbed import algorithms, datasets
print(json.dumps([
    algorithms.CARFT is domainbed_carft.method.algorithms.CARFT,
    [c.__name__ for c in datasets.EmojiStyles.__mro__],
    algorithms.ALGORITHMS + datasets.DATASETS,
]))
"""
    names = ["ERM", *OURS, "Pets", "EmojiStyles", "EmojiUnseen"]
    # with what the host expects of its data sets behind ours
    bases = ["EmojiStyles", "EmojiStyles", "MultipleDomainDataset", "object"]
    assert site.json("-c", code, cwd=checkout) == [True, bases, names]


# The switch, registering by hand, values of a host


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


def test_numpy_values_of_a_hosts_registry_are_stored_as_pythons() -> None:
    """Upstream draws some by RandomState.choice; no restricted reader would read those back."""
    theirs = {"resnet_dropout": np.float64(0.1), "count": np.int64(3), "name": "x"}
    drawn = additions._overlaid(lambda algorithm, dataset, seed: theirs, hparams, 1)
    found = drawn("CARFT", "PACS", 1)
    assert [type(found[key]) for key in theirs] == [float, int, str]
