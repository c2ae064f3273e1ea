"""Our package, installed, in checkouts of several shapes: jobs, sweeps and tables of real training.

The checkouts in `tests/checkouts` are ours, written after DomainBed's contract and after what its
forks make of it. Nothing in them knows of CAR-FT.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from fake_checkout import OURS
from installed import Environment
from torchvision.transforms.functional import to_pil_image

from domainbed_carft.method import hparams, prompts

CHECKOUTS = Path(__file__).parent / "checkouts"

# Each shape is the one before it with some files replaced; a package replaces the module.
SHAPES = {
    "classic": ["classic"],
    "early": ["classic", "early"],
    "clip": ["classic", "clip"],
    "tables": ["classic", "tables"],
    "packages": ["classic", "early", "packages"],
}
OWN_TRANSFORMS = ("clip", "packages")

# An editable install differs in how we are found, not in what we do to a host.
CASES = [("wheel", shape) for shape in SHAPES] + [("editable", "classic")]


@pytest.fixture(scope="module")
def installations(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path, source: Path
) -> dict[str, Environment]:
    made = {}
    for kind, what in (("wheel", [str(wheel)]), ("editable", ["--editable", str(source)])):
        made[kind] = Environment(tmp_path_factory.mktemp("installed") / kind)
        made[kind].install(*what)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pets: three environments of eight noise pictures, half of them cats."""
    folder = tmp_path_factory.mktemp("the user's data")
    noise = torch.Generator().manual_seed(0)
    for environment in ("art", "photo", "sketch"):
        for name in ("Persian_cat", "dog"):
            place = folder / "Pets" / environment / name
            place.mkdir(parents=True)
            for number in range(4):
                pixels = torch.rand(3, 40, 40, generator=noise)
                to_pil_image(pixels).save(place / f"{number}.png")
    return folder


def write(shape: str, folder: Path) -> Path:
    """Write the checkout of this shape; return its root."""
    root = folder / "a user's checkout"
    for layer in SHAPES[shape]:
        for package in (CHECKOUTS / layer / "domainbed").iterdir():
            if package.is_dir():
                (root / "domainbed" / f"{package.name}.py").unlink(missing_ok=True)
        shutil.copytree(CHECKOUTS / layer, root, dirs_exist_ok=True)
    if shape == "packages":
        (root / "domainbed" / "__init__.py").unlink()
    return root


def files_of(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(environment: Environment, root: Path, *arguments: str, **variables: str):
    """Run `arguments` from the checkout's root; return what was printed, demand success."""
    variables = {"DOMAINBED_CARFT_CACHE": os.environ["DOMAINBED_CARFT_CACHE"], **variables}
    done = environment.run(*arguments, cwd=root, OMP_NUM_THREADS="1", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "domainbed-carft could not" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_sweep_is_launched_and_collected(
    installations, kind, shape, data, random_tiny, tmp_path
) -> None:
    root = write(shape, tmp_path)
    before = files_of(root)
    python = partial(run, installations[kind], root)
    dataset = "VLCS" if shape == "tables" else "Pets"
    given = {"clip_backbone": str(random_tiny), "batch_size": 4, "warmup_steps": 0}
    given["original_precision"] = "fp32"
    algorithms = OURS if (kind, shape) == ("wheel", "classic") else OURS[:1]
    output = tmp_path / "output"
    printed = python(
        *"-m domainbed.scripts.sweep launch --test_envs 1 --command_launcher local".split(),
        *["--datasets", dataset, "--data_dir", str(data), "--output_dir", str(output)],
        *["--algorithms", *algorithms, "--hparams", json.dumps(given)],
    )
    normalised = 0.48145466 if shape == "clip" else 0.485  # CLIP's, ImageNet's
    assert printed.count(f"CLIP input: undoes mean [{normalised}, ") == len(algorithms)
    records = {}
    for path in output.glob("*/results.jsonl"):
        first, last = map(json.loads, path.read_text().splitlines())
        records[first["args"]["algorithm"]] = (first, last)
    assert sorted(records) == sorted(algorithms)
    for _, last in records.values():
        assert last["step"] == 1 and last["loss"] > 0
        check_words(last["hparams"], dataset)
        assert last["hparams"]["protocol"] == ("host" if shape in OWN_TRANSFORMS else "domainbed")
        assert last["hparams"]["data_augmentation"] is True  # the host's own are there too
    first, last = records["CARFT"]
    assert first["loss_kl"] == 0.0 < last["loss_kl"]
    table = python("-m", "domainbed.scripts.collect_results", "--input_dir", str(output))
    assert [line.split()[:2] for line in table.splitlines()] == [[n, "1"] for n in algorithms]
    assert files_of(root) == before


def test_each_algorithm_trains_in_one_process(installations, tmp_path) -> None:
    root = write("classic", tmp_path)
    script = str(Path(__file__).parents[1] / "benchmarks" / "checkout_methods.py")
    printed = run(installations["wheel"], root, script, str(root))
    losses = {
        line.split()[0]: line.split()[2:] for line in printed.splitlines() if " loss " in line
    }
    assert sorted(losses) == sorted(hparams.ALGORITHMS)
    first = {name: float(two[0].rstrip(",")) for name, two in losses.items()}
    # At the original weights these have the same loss: their terms are zero.
    same = {*first} - {"CLIPood", "CLIPMIRO", "FLYP"}
    assert len({first[name] for name in same}) == 1
    unchanged = [name for name, two in losses.items() if float(two[1]) == first[name]]
    assert unchanged == ["CLIPZeroShot"]


def check_words(recorded: dict, dataset: str) -> None:
    """The digest is that of the words the job should have read; the names are not written down."""
    pets, vlcs = ["persian cat", "dog"], ["bird", "car", "chair", "dog", "person"]
    names = {"Pets": pets, "VLCS": vlcs}[dataset]
    assert recorded["class_names"] == f"dataset:{dataset}"
    assert recorded["prompts_digest"] == prompts.digest(prompts.contexts("imagenet"), names)


SNAPSHOT = """
import sys
import domainbed_carft
from domainbed import algorithms, command_launchers, datasets, hparams_registry
def snapshot():
    seen = {}
    modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "domainbed"}
    for module, content in modules.items():
        for name, value in vars(content).items():
            listed = repr(value) if isinstance(value, (list, dict)) and name[0] != "_" else ""
            seen[module, name] = (id(value), listed)
            if isinstance(value, type):
                seen |= {(module, name, n): id(v) for n, v in vars(value).items()}
    return seen
before = snapshot()
domainbed_carft.register()
registered = snapshot()
assert registered != before, "nothing was added, so this shows nothing"
hparams_registry.default_hparams("CARFT", "Pets")
domainbed_carft.register()
after = snapshot()
print(*[key for key in {**registered, **after} if registered.get(key) != after.get(key)])
"""


@pytest.mark.parametrize("shape", SHAPES)
def test_registering_twice_is_registering_once(installations, shape, tmp_path) -> None:
    off = {"DOMAINBED_CARFT_DISABLE": "1"}
    left = run(installations["wheel"], write(shape, tmp_path), "-c", SNAPSHOT, **off)
    assert left == "\n"


HOSTS_OWN_CALLS = """
from domainbed import algorithms, hparams_registry
lookup, draw = algorithms.get_algorithm_class, hparams_registry.random_hparams
calls = [
    lambda: lookup("ERM").__name__,
    lambda: lookup(algorithm_name="ERM").__name__,
    lambda: lookup("Unheard"),
    lambda: lookup(["ERM"]),
    lambda: hparams_registry.default_hparams("ERM", "Pets"),
    lambda: draw("ERM", "Pets", 3),
    lambda: draw("ERM", "Pets"),
    lambda: draw("Unheard", "Pets", 3),
]
for call in calls:
    try:
        print(call())
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("shape", ["classic", "tables"])
def test_the_hosts_own_calls_do_what_they_did(installations, shape, tmp_path) -> None:
    root = write(shape, tmp_path)
    off = {"DOMAINBED_CARFT_DISABLE": "1"}
    with_us = run(installations["wheel"], root, "-c", HOSTS_OWN_CALLS)
    assert with_us == run(installations["wheel"], root, "-c", HOSTS_OWN_CALLS, **off)
    assert with_us.splitlines()[0] == "ERM" and "TypeError" in with_us
