"""The plugin beside small checkouts of DomainBed, each case in an interpreter of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_checkout import HOST, OUR_HPARAMS, OURS, Site, write_checkout, write_files


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
        "datasets": ["Pets", "EmojiStyles"],
        "hparams": OUR_HPARAMS,
    }


def test_a_checkout_on_pythonpath_wins_over_the_harness(site: Site, checkout: Path) -> None:
    assert site.train(path=(checkout,))["file"] == of(checkout)


def test_without_a_checkout_the_harness_serves(site: Site) -> None:
    result = site.train()
    assert result["file"] == of(site.package / "harness")
    assert result["algorithms"] == ["ERM", *OURS]


def test_a_source_tree_keeps_the_harness_beside_the_package(site: Site) -> None:
    (site.package / "harness").rename(site.folder / "site" / "third_party")
    assert site.train()["file"] == of(site.folder / "site" / "third_party")


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


@pytest.mark.parametrize(
    "arguments",
    [("-m", "domainbed.scripts.train", "CARFT"), ("-c", "import domainbed.algorithms")],
)
def test_a_bare_folder_is_named(site: Site, arguments: tuple[str, ...]) -> None:
    bare = site.empty / "domainbed"
    (bare / "PACS").mkdir(parents=True)
    done = site.run(*arguments)
    assert done.returncode != 0
    assert f"Python took {bare} for the package 'domainbed'" in done.stderr
    assert "Rename the folder or start from another one" in done.stderr


def test_a_bare_folder_does_not_hide_a_checkout(site: Site, checkout: Path) -> None:
    (site.empty / "domainbed").mkdir()
    assert site.train(path=(checkout,))["file"] == of(checkout)


def test_a_checkout_that_lost_its_init_works_as_it_did(site: Site, checkout: Path) -> None:
    (checkout / "domainbed" / "__init__.py").unlink()
    assert site.train(cwd=checkout)["class"] == "CARFT"
    code = "import json, importlib.util as u; print(json.dumps(u.find_spec('domainbed.no')))"
    assert site.json("-c", code, cwd=checkout) is None


# The host stays what it was


def test_other_algorithms_keep_their_hparams(site: Site, checkout: Path) -> None:
    code = """
import json
from domainbed import algorithms, hparams_registry as registry
from domainbed_carft import hparams
others = [registry.default_hparams("ERM", "Pets"), registry.random_hparams("ERM", "Pets", 14)]
touched = sorted(hparams.ALLOWED)
ours = registry.random_hparams("CARFT", "Pets", 14)
print(json.dumps([others, touched, ours, sorted(hparams.ALLOWED)]))
"""
    others, touched, ours, allowed = site.json("-c", code, cwd=checkout)
    assert others == [{"lr": 0.001, "class_balanced": False}, {"lr": 2.0, "class_balanced": False}]
    assert touched == []
    assert ours == {"lr": 14, "kl_weight": 2.0, "class_balanced": False}
    assert allowed == ["class_balanced", "lr"]


def test_older_forks_hand_a_random_state(site: Site, tmp_path: Path) -> None:
    registry = HOST["hparams_registry.py"].replace("random_seed / 7", "random_seed.rand()")
    registry = registry.replace(
        "_hparams(algorithm, dataset, 0)", "_hparams(algorithm, dataset, R(0))"
    )
    registry = registry.replace("dataset, seed).items", "dataset, R(seed)).items")
    fork = write_checkout(tmp_path / "fork", hparams_registry="from lib import R\n" + registry)
    numbers = "import random\nclass R(random.Random):\n    rand = random.Random.random\n"
    write_files(fork, {"lib.py": numbers + "    randint = random.Random.randrange\n"})
    code = """
import json
from domainbed.hparams_registry import random_hparams
print(json.dumps([random_hparams("CARFT", "Pets", seed)["lr"] for seed in (1, 1, 2)]))
"""
    first, again, other = site.json("-c", code, cwd=fork)
    assert isinstance(first, int) and first == again != other


def test_class_names_reach_us_by_the_very_hparams(site: Site, checkout: Path) -> None:
    data = site.folder / "data"
    for folder in ("art/cat", "art/dog", "photo/cat", "photo/dog"):
        (data / folder).mkdir(parents=True)
    code = """
import json, sys
from domainbed import datasets
from domainbed_carft import prompts
hparams = {"lr": 1}
pets = datasets.Pets(sys.argv[1], [0], hparams)
((seen, classes),) = prompts.REMEMBERED
print(json.dumps([seen is hparams, hparams, classes, len(pets.datasets)]))
"""
    names = {"art": ["cat", "dog"], "photo": ["cat", "dog"]}
    assert site.json("-c", code, str(data), cwd=checkout) == [True, {"lr": 1}, names, 2]


@pytest.mark.parametrize("module", ["algorithms", "hparams", "emoji", "prompts"])
@pytest.mark.parametrize("warnings", ["default", "error"])
def test_our_failure_is_one_warning(site: Site, checkout: Path, module: str, warnings: str) -> None:
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
    arguments = ["-W", warnings, "-c", code, str(checkout.parent / "elsewhere" / "..")]
    done = site.run(*arguments, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[:2] == ["ERM", 0.001]
    assert done.stderr.count("domainbed-carft") == 2
    assert "(RuntimeError: planted)" in done.stderr
    assert "DOMAINBED_CARFT_DISABLE=1 in the environment switches" in done.stderr


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
    assert "it has its own CARFT" in done.stderr


@pytest.mark.parametrize("first", ["domainbed_carft.algorithms", "domainbed_carft.emoji"])
def test_our_modules_may_be_imported_first(site: Site, checkout: Path, first: str) -> None:
    code = f"""
import json, {first}
from domainbed import algorithms, datasets
import domainbed_carft.algorithms, domainbed_carft.emoji
print(json.dumps([
    algorithms.CARFT is domainbed_carft.algorithms.CARFT,
    datasets.EmojiStyles is domainbed_carft.emoji.EmojiStyles,
    algorithms.ALGORITHMS + datasets.DATASETS,
]))
"""
    names = ["ERM", *OURS, "Pets", "EmojiStyles"]
    assert site.json("-c", code, cwd=checkout) == [True, True, names]


def test_a_zipped_checkout_and_a_spec_that_is_only_looked_at(site: Site, checkout: Path) -> None:
    code = """
import importlib.util, json, shutil, sys
archive = shutil.make_archive(sys.argv[1], "zip", ".")
sys.path[:] = [archive] + [path for path in sys.path if path]
assert importlib.util.find_spec("domainbed.datasets")
from domainbed import algorithms, datasets, hparams_registry
print(json.dumps([
    algorithms.__file__.startswith(archive),
    algorithms.ALGORITHMS + datasets.DATASETS,
    hparams_registry.default_hparams("CARFT", "Pets"),
]))
"""
    result = site.json("-c", code, str(site.folder / "host"), cwd=checkout)
    assert result == [True, ["ERM", *OURS, "Pets", "EmojiStyles"], OUR_HPARAMS]


def test_a_reloaded_module_is_extended_again(site: Site, checkout: Path) -> None:
    code = """
import importlib, json
from domainbed import algorithms, hparams_registry
importlib.reload(algorithms)
importlib.reload(hparams_registry)
print(json.dumps([algorithms.ALGORITHMS, hparams_registry.default_hparams("CARFT", "Pets")]))
"""
    assert site.json("-c", code, cwd=checkout) == [["ERM", *OURS], OUR_HPARAMS]
