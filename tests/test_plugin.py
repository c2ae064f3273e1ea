"""The plugin with small checkouts of DomainBed, each test in a new interpreter."""

import json

import numpy as np
import pytest
from fake_checkout import OUR_ALGORITHMS, OUR_HPARAMS, Site, module_text, write_checkout

from domainbed_carft.images import preprocessing
from domainbed_carft.plugin import registry_functions


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.fixture
def checkout(tmp_path):
    return write_checkout(tmp_path / "my checkout's root")


def algorithms_file(root):
    """Return the file of domainbed.algorithms in a checkout."""
    return str(root / "domainbed" / "algorithms.py")


# The domainbed in use


def test_checkout_in_current_folder_is_extended(site, checkout):
    assert site.train(cwd=checkout) == {
        "file": algorithms_file(checkout),
        "class": "CARFT",
        "algorithms": ["ERM", *OUR_ALGORITHMS],
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
def test_checkout_takes_precedence_over_harness(site, checkout, place):
    if place == "pythonpath":
        (site.empty / "domainbed").mkdir()  # does not hide it
        assert site.train(path=(checkout,))["file"] == algorithms_file(checkout)
        return

    harness = site.package / "harness"
    if place == "source tree":  # the harness is next to the package
        harness = harness.rename(site.folder / "site" / "third_party")

    report = site.train()
    assert report["file"] == algorithms_file(harness)
    assert report["algorithms"] == ["ERM", *OUR_ALGORITHMS]


def test_finder_appended_later_takes_precedence_over_harness(site, checkout):
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
    assert site.json("-c", code, str(checkout)) == [
        algorithms_file(checkout),
        ["ERM", *OUR_ALGORITHMS],
    ]


# The host does not change


def test_hparams_of_host_algorithms_do_not_change(site, checkout):
    code = """
import json
from domainbed import hparams_registry as registry
print(json.dumps([
    registry.default_hparams("ERM", "Pets"),
    registry.random_hparams("ERM", "Pets", 14),
    registry.random_hparams("CARFT", "Pets", seed=14),
]))
"""
    assert site.json("-c", code, cwd=checkout) == [
        {"lr": 0.001, "class_balanced": False},
        {"lr": 2.0, "class_balanced": False},
        {"lr": 14, "kl_weight": 2.0, "class_balanced": False},
    ]


@pytest.mark.parametrize(
    ("protocol", "transforms", "recorded"),
    [
        ("clip", [["shortest", 224, False], ["shortest", 224, True]], "clip"),
        ("domainbed", ["host's", "host's"], "host"),
    ],
)
def test_facts_of_dataset_are_found_by_class_names(site, tmp_path, protocol, transforms, recorded):
    """The transforms follow the protocol, although the host writes class names like DPLCLIP."""
    signature = "augment, hparams):\n"
    writing = signature + "        hparams['class_names'] = ['by', 'host']\n"
    text = module_text("datasets").replace(signature, writing)
    fork = write_checkout(tmp_path / "fork", modules={"datasets": text})
    for folder in ("art/cat", "art/dog", "photo/cat", "photo/dog"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    code = """
import json, sys
from domainbed import datasets
from domainbed_carft.datasets import known_datasets

root, protocol = sys.argv[1:]
hparams = {"class_names": "dataset:Pets", "protocol": protocol}
pets = datasets.Pets(root, [0], hparams)
facts = known_datasets.recall(dict(hparams))
print(json.dumps([
    [e.transform if isinstance(e.transform, list) else "host's" for e in pets.datasets],
    facts.protocol,
    [[e.name, e.classes] for e in facts.environments],
    [e.normalisation for e in facts.environments],
    len(known_datasets.recall({"class_names": "dataset:PACS"}).environments),
    hparams,
]))
"""
    of_host = [[0.5, 0.25, 0.0], [2.0, 1.0, 1.0]]
    of_clip = [list(preprocessing.CLIP_MEAN), list(preprocessing.CLIP_STD)]
    normalisation = of_host if protocol == "domainbed" else of_clip
    assert site.json("-c", code, str(tmp_path / "data"), protocol, cwd=fork) == [
        transforms,
        recorded,
        [["art", ["cat", "dog"]], ["photo", ["cat", "dog"]]],
        [normalisation] * 2,
        0,
        {"class_names": "dataset:Pets", "protocol": protocol},
    ]


@pytest.mark.parametrize(
    "module", ["method/algorithms", "jobs/facts", "datasets/included", "images/dataset_facts"]
)
def test_failing_plugin_warns_once_without_breaking_host(site, checkout, module):
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


def test_failing_import_of_host_raises_original_error(site, tmp_path):
    broken = write_checkout(tmp_path / "broken", modules={"algorithms": "import no_such_module\n"})

    done = site.run("-c", "import domainbed.algorithms", cwd=broken)

    assert done.stderr.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")
    assert "domainbed-carft" not in done.stderr


def test_names_in_use_by_host_are_not_replaced(site, tmp_path):
    """Such as a CARFT of the host, or torchvision's CIFAR100. Only jobs warn about datasets."""
    host_class = "\nclass CARFT(Algorithm):\n    is_of_host = True\n"
    imported = "from json import JSONDecoder as DTD\n"
    modules = {"algorithms": module_text("algorithms") + host_class}
    modules["datasets"] = imported + module_text("datasets")
    fork = write_checkout(tmp_path / "fork", modules=modules)
    code = """
import json, sys
from domainbed import algorithms, datasets, hparams_registry
rates = [hparams_registry.default_hparams("CLIPFineTune", name)["lr"] for name in sys.argv[1:]]
print(json.dumps([
    algorithms.CARFT.is_of_host,
    algorithms.ALGORITHMS,
    hparams_registry.default_hparams("CARFT", "Pets")["lr"],
    datasets.DTD is json.JSONDecoder,
    hasattr(datasets, "EmojiStyles"),
    rates,
]))
"""
    names = ["ERM", *OUR_ALGORITHMS[1:]]
    done = site.run("-c", code, "Pets", cwd=fork)
    assert json.loads(done.stdout) == [True, names, 0.001, True, True, [5e-6]]
    assert "domainbed.algorithms has its own CARFT, which remains in use" in done.stderr
    assert "DTD" not in done.stderr and "unchanged" not in done.stderr  # others were added

    done = site.run("-c", code, "Pets", "DTD", "DTD", cwd=fork)
    assert json.loads(done.stdout)[-1] == [5e-6] * 3
    assert done.stderr.count("domainbed.datasets has its own DTD, which remains in use") == 1


def test_package_can_be_imported_before_host(site, checkout):
    code = """
import json
import domainbed_carft.method.algorithms, domainbed_carft.datasets.included
from domainbed import algorithms, datasets
print(json.dumps([
    issubclass(algorithms.CARFT, domainbed_carft.method.algorithms.CARFT),
    [c.__name__ for c in datasets.EmojiStyles.__mro__],
    algorithms.ALGORITHMS + datasets.DATASETS,
]))
"""
    is_subclass, bases, names = site.json("-c", code, cwd=checkout)

    assert is_subclass
    assert bases == ["EmojiStyles", "EmojiStyles", "MultipleDomainDataset", "object"]
    assert names == ["ERM", *OUR_ALGORITHMS, "Pets", "EmojiStyles", "EmojiUnseen"]


# The switch, and registering


def test_disable_variable_switches_plugin_off(site, checkout):
    off = {"DOMAINBED_CARFT_DISABLE": "YES"}
    assert site.train("ERM", cwd=checkout, **off)["algorithms"] == ["ERM"]
    done = site.run("-c", "import domainbed", **off)
    assert "No module named 'domainbed'" in done.stderr

    for value in ("", "0", "false"):
        assert site.train(cwd=checkout, DOMAINBED_CARFT_DISABLE=value)["class"] == "CARFT"


def test_register_raises_error_if_module_cannot_be_extended(site, checkout):
    (site.package / "method" / "algorithms.py").write_text("raise RuntimeError('planted')\n")
    code = "import domainbed.algorithms, domainbed_carft; domainbed_carft.register()"
    done = site.run("-c", code, cwd=checkout, DOMAINBED_CARFT_DISABLE="1")
    assert done.stderr.endswith("CarftError: domainbed.algorithms cannot be extended: planted\n")


def test_numpy_values_of_host_registry_become_python_values():
    """Upstream draws some by RandomState.choice, which restricted readers reject."""
    host_hparams = {"resnet_dropout": np.float64(0.1), "count": np.int64(3), "name": "x"}
    draw = registry_functions.wrap_function(
        lambda algorithm, dataset, seed: host_hparams,
        draws=True,
        host_names=registry_functions.HostNames(),
    )

    hparams = draw("CARFT", "PACS", 1)

    assert [type(hparams[name]) for name in host_hparams] == [float, int, str]
