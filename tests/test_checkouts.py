"""Our package, installed, in checkouts of several shapes: jobs, sweeps and tables of real training.

`fake_checkout` lists the shapes. Nothing in them knows of CAR-FT.
"""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from fake_checkout import write_checkout
from installed import Environment
from torchvision.transforms.functional import to_pil_image

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import prompts

SHAPES = (
    "classic",
    "early",
    "clip",
    "tables",
    "packages",
    "parts",
    "init_step",
    "keywords",
    "registry",
)
OWN_TRANSFORMS = ("clip", "packages")

CLASS_NAMES = {
    "Pets": ["persian cat", "dog"],
    "VLCS": ["bird", "car", "chair", "dog", "person"],
}

# An editable install differs in how we are found, not in what we do to a host. A sweep trains in
# the classic checkout with the wheel.
CASES = [("wheel", shape) for shape in SHAPES if shape != "classic"] + [("editable", "classic")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pets: three environments of eight noise pictures, half of them cats."""
    folder = tmp_path_factory.mktemp("the user's data")
    noise = torch.Generator().manual_seed(0)

    for environment in ("art", "photo", "sketch"):
        for name in ("Persian_cat", "dog"):
            class_folder = folder / "Pets" / environment / name
            class_folder.mkdir(parents=True)
            for number in range(4):
                pixels = torch.rand(3, 40, 40, generator=noise)
                to_pil_image(pixels).save(class_folder / f"{number}.png")
    return folder


def write_shape(shape: str, folder: Path) -> Path:
    """Write the checkout of this shape; return its root."""
    return write_checkout(folder / "a user's checkout", shape)


def files_of(root: Path) -> dict[str, bytes]:
    """Relative path -> content, of all files that no interpreter has left."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(environment: Environment, root: Path, *arguments: str, **variables: str):
    """Run `arguments` from the checkout's root; return what was printed, demand success."""
    variables.setdefault("DOMAINBED_CARFT_CACHE", os.environ["DOMAINBED_CARFT_CACHE"])
    done = environment.run(*arguments, cwd=root, OMP_NUM_THREADS="1", **variables)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "domainbed-carft could not" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def hparams_of_user(random_tiny: Path) -> str:
    """What a user sets for a small CLIP, as JSON."""
    values = {"clip_backbone": str(random_tiny), "batch_size": 4, "warmup_steps": 0}
    return json.dumps(values)


def test_a_sweep_is_launched_and_collected(installations, data, hparams_of_user, tmp_path) -> None:
    """By the checkout's own launcher, whose jobs are interpreters of their own."""
    root = write_shape("classic", tmp_path)
    files_before = files_of(root)
    python = partial(run, installations["wheel"], root)
    output = tmp_path / "output"

    launch = "-m domainbed.scripts.sweep launch --test_envs 1 --command_launcher local".split()
    launch += ["--datasets", "Pets", "--data_dir", str(data), "--output_dir", str(output)]
    launch += ["--algorithms", "CARFT", "CLIPZeroShot", "--hparams", hparams_of_user]
    printed = python(*launch)

    records = records_by_algorithm(output)
    assert sorted(records) == ["CARFT", "CLIPZeroShot"]
    assert printed.count("CLIP input: undoes mean [0.485, ") == 2
    for _, last in records.values():
        check_last_record(last, "classic", "Pets")

    table = python("-m", "domainbed.scripts.collect_results", "--input_dir", str(output))
    rows = [line.split()[:2] for line in table.splitlines()]
    assert rows == [["CARFT", "1"], ["CLIPZeroShot", "1"]]
    assert files_of(root) == files_before


def check_parts(first: dict, last: dict) -> None:
    """What the host measured itself is what it was given, and only `update` steps the schedule."""
    for record in (first, last):
        assert record["accuracy"] == pytest.approx(record["measured_accuracy"])
        progress = (record["step"] + 1) / record["hparams"]["total_steps"]
        rate = record["hparams"]["lr"] * 0.5 * (1 + math.cos(math.pi * progress))
        assert record["rate"] == pytest.approx(rate)


def check_network(first: dict, last: dict) -> None:
    """The average of the networks is the network at first, and no more once this has moved."""
    assert first["gap_to_average"] < 1e-5 < last["gap_to_average"]


def check_weights(first: dict, last: dict) -> None:
    """The saved network has weights; the base class asserts its further argument itself."""
    assert first["saved_weights"] == last["saved_weights"] > 0


def check_defaults(first: dict, last: dict) -> None:
    """The host's rate stays, and nothing but the facts comes to what it recorded."""
    recorded = last["hparams"]
    assert recorded["lr"] == 5e-5
    assert recorded["facts"] and not recorded.keys() & {"kl_weight", "grad_clip", "lora_rank"}


# Of the shapes whose `train` measures more of an algorithm.
HOST_CHECKS = {
    "parts": check_parts,
    "init_step": check_network,
    "keywords": check_weights,
    "registry": check_defaults,
}


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_checkout_of_each_shape_trains_carft(
    installations, kind, shape, data, hparams_of_user, tmp_path
) -> None:
    root = write_shape(shape, tmp_path)
    files_before = files_of(root)
    dataset = "VLCS" if shape == "tables" else "Pets"
    output = tmp_path / "output"

    train = f"-m domainbed.scripts.train --algorithm CARFT --dataset {dataset} --test_envs 1"
    paths = ["--data_dir", str(data), "--output_dir", str(output / "job")]
    words = [*train.split(), *paths, "--hparams", hparams_of_user]
    printed = run(installations[kind], root, *words)

    mean = 0.48145466 if shape == "clip" else 0.485  # CLIP's, ImageNet's
    assert printed.count(f"CLIP input: undoes mean [{mean}, ") == 1
    first, last = records_by_algorithm(output)["CARFT"]
    check_last_record(last, shape, dataset)
    assert first["loss_kl"] == 0.0 < last["loss_kl"]
    assert files_of(root) == files_before
    if shape in HOST_CHECKS:
        HOST_CHECKS[shape](first, last)
    else:
        assert "train_acc" not in last


def records_by_algorithm(output: Path) -> dict[str, tuple[dict, dict]]:
    """Algorithm -> the two records of its job."""
    records = {}
    for path in output.glob("*/results.jsonl"):
        first, last = map(json.loads, path.read_text().splitlines())
        records[first["args"]["algorithm"]] = (first, last)
    return records


def check_last_record(record: dict, shape: str, dataset: str) -> None:
    """Assert what a job's second step records in a checkout of this shape."""
    recorded_hparams = record["hparams"]
    assert record["step"] == 1 and record["loss"] > 0
    facts = recorded_hparams["facts"]
    assert facts["protocol"] == ("host" if shape in OWN_TRANSFORMS else "domainbed")
    assert recorded_hparams["data_augmentation"] is True  # the host's own are there too

    # The digest is that of the prompts that the job should have read; names are not written down.
    class_names = CLASS_NAMES[dataset]
    contexts = prompts.contexts("imagenet")
    if shape != "registry":  # whose hparams are its own
        assert recorded_hparams["class_names"] == f"dataset:{dataset}"
    assert facts["prompts_digest"] == prompts.digest(contexts, class_names)


def test_an_algorithm_without_an_optimizer_takes_the_parts_that_a_host_sets_to_none(
    installations, data, hparams_of_user, tmp_path
) -> None:
    root = write_shape("parts", tmp_path)
    train = "-m domainbed.scripts.train --algorithm CLIPZeroShot --dataset Pets --test_envs 1"
    paths = ["--data_dir", str(data), "--output_dir", str(tmp_path / "output" / "job")]

    run(installations["editable"], root, *train.split(), *paths, "--hparams", hparams_of_user)

    _, last = records_by_algorithm(tmp_path / "output")["CLIPZeroShot"]
    assert last["accuracy"] == pytest.approx(last["measured_accuracy"])
    assert last["rate"] == last["hparams"]["lr"]


def test_a_host_whose_registry_lacks_our_hparams_is_told_which_values_stay(
    installations, data, hparams_of_user, tmp_path
) -> None:
    root = write_shape("registry", tmp_path)
    train = "-m domainbed.scripts.train --algorithm CARFT --dataset Pets --test_envs 1 --steps 1"
    paths = ["--data_dir", str(data), "--output_dir", str(tmp_path / "job")]
    words = [*train.split(), *paths, "--hparams", hparams_of_user]

    done = installations["editable"].run(*words, cwd=root)

    assert done.returncode == 0, done.stderr
    assert "this DomainBed's registry does not know CARFT" in done.stderr
    assert "lr is 5e-05 (by default 5e-06). Set them with --hparams" in done.stderr


def test_each_algorithm_trains_in_one_process(installations, tmp_path) -> None:
    root = write_shape("classic", tmp_path)
    script = str(Path(__file__).parents[1] / "benchmarks" / "checkout_methods.py")
    printed = run(installations["wheel"], root, script, str(root))

    # A line is "NAME loss FIRST, SECOND".
    words = [line.replace(",", "").split() for line in printed.splitlines() if " loss " in line]
    losses = {name: (float(first), float(second)) for name, _, first, second in words}
    assert sorted(losses) == sorted(ALGORITHMS)
    # At the original weights all but these have the same loss: their terms are zero.
    others = ("CLIPood", "CLIPMIRO", "FLYP", "CaRot")
    first_losses = {first for name, (first, _) in losses.items() if name not in others}
    assert len(first_losses) == 1
    unchanged = [name for name, (first, second) in losses.items() if first == second]
    assert unchanged == ["CLIPZeroShot"]


SNAPSHOT = """
import sys
import domainbed_carft
from domainbed import algorithms, command_launchers, datasets, hparams_registry

def snapshot():
    values = {}
    modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "domainbed"}
    for module, content in modules.items():
        for name, value in vars(content).items():
            listing = repr(value) if isinstance(value, (list, dict)) and name[0] != "_" else ""
            values[module, name] = (id(value), listing)
            if isinstance(value, type):
                values |= {(module, name, n): id(v) for n, v in vars(value).items()}
    return values

def print_differences(title, first, second):
    print(title, *[key for key in {**first, **second} if first.get(key) != second.get(key)])

before = snapshot()
domainbed_carft.register()
registered = snapshot()
assert registered != before, "nothing was added, so this shows nothing"
hparams_registry.default_hparams("CARFT", "Pets")
domainbed_carft.register()
print_differences("after a second time:", registered, snapshot())
"""


@pytest.mark.parametrize("shape", SHAPES)
def test_registering_twice_is_registering_once(installations, shape, tmp_path) -> None:
    root = write_shape(shape, tmp_path)
    differences = run(installations["wheel"], root, "-c", SNAPSHOT, DOMAINBED_CARFT_DISABLE="1")
    assert differences == "after a second time:\n"


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
def test_the_hosts_own_calls_return_the_same_with_our_package(
    installations, shape, tmp_path
) -> None:
    root = write_shape(shape, tmp_path)
    python = partial(run, installations["wheel"], root)

    extended = python("-c", HOSTS_OWN_CALLS)
    unextended = python("-c", HOSTS_OWN_CALLS, DOMAINBED_CARFT_DISABLE="1")

    assert extended == unextended
    assert extended.splitlines()[0] == "ERM"
    assert "TypeError" in extended
