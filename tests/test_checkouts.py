"""The installed package in checkouts of several shapes: jobs and sweeps with real training.

`fake_checkout` lists the shapes. None of them contains CAR-FT.
"""

import json
import math
import os
from functools import partial

import pytest
import torch
from fake_checkout import REPO, write_checkout
from helpers.pages import blocks
from ruamel.yaml import YAML
from torchvision.transforms.functional import to_pil_image

from domainbed_carft.files import weights
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import prompts

pytestmark = pytest.mark.slow

SHAPES = ("classic", "clip", "tables", "packages", "parts")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data folder with Pets: three environments of eight noise images, half of them cats."""
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


def read_files(root):
    """Return the content of all files except bytecode, by relative path."""
    paths = [path for path in root.rglob("*") if path.suffix != ".pyc" and path.is_file()]
    return {path.relative_to(root): path.read_bytes() for path in paths}


def run(run_interpreter, root, *arguments, **variables):
    """Run an interpreter in the root of a checkout, assert success, and return its output."""
    variables.setdefault("DOMAINBED_CARFT_CACHE", os.environ["DOMAINBED_CARFT_CACHE"])
    done = run_interpreter(*arguments, cwd=root, OMP_NUM_THREADS="1", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "domainbed-carft could not" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def train_in_shape(data, random_tiny, tmp_path):
    """Function that trains two steps in a checkout of a shape, and checks the records."""

    def train(run_interpreter, shape, algorithm="CARFT"):
        root = write_checkout(tmp_path / "a user's checkout", shape)
        files_before = read_files(root)
        hparams = {"clip_backbone": str(random_tiny), "batch_size": 4, "warmup_steps": 0}
        words = f"-m domainbed.scripts.train --algorithm {algorithm} --dataset Pets".split()
        words += ["--test_envs", "1", "--data_dir", str(data), "--hparams", json.dumps(hparams)]
        printed = run(run_interpreter, root, *words, "--output_dir", str(tmp_path / "job"))

        mean = 0.48145466 if shape == "clip" else 0.485  # CLIP's, ImageNet's
        assert printed.count(f"CLIP input: undoes mean [{mean}, ") == 1
        assert read_files(root) == files_before
        lines = (tmp_path / "job" / "results.jsonl").read_text().splitlines()
        first, last = map(json.loads, lines)
        check_last_record(last, shape)
        return first, last, printed

    return train


def check_last_record(record, shape):
    """Check the record of the second step in a checkout of a shape."""
    hparams = record["hparams"]
    facts = hparams["facts"]
    assert record["step"] == 1 and record["loss"] > 0
    assert facts["protocol"] == ("host" if shape in ("clip", "packages") else "domainbed")
    assert hparams["data_augmentation"] is True  # a hyperparameter of the host

    names, class_names = "dataset:Pets", ["persian cat", "dog"]
    if shape == "clip":  # its dataset writes class names, and its registry has none
        names = class_names = ["Persian_cat", "dog"]
    assert hparams["class_names"] == names
    expected = prompts.digest(prompts.parse_contexts("imagenet"), class_names)
    assert facts["prompts_digest"] == expected


def check_parts(first, last):
    """Check values returned to the host, and that only `update` steps the schedule."""
    for record in (first, last):
        assert record["accuracy"] == pytest.approx(record["measured_accuracy"])
        progress = (record["step"] + 1) / record["hparams"]["total_steps"]
        rate = record["hparams"]["lr"] * 0.5 * (1 + math.cos(math.pi * progress))
        assert record["rate"] == pytest.approx(rate)
    # At first the average of the networks equals the network, which then changes.
    assert first["gap_to_average"] < 1e-5 < last["gap_to_average"]


# An editable install only differs in how the package is found, so one shape is enough.
@pytest.mark.parametrize(
    ("kind", "shape"), [("editable", "classic"), *(("wheel", shape) for shape in SHAPES[1:])]
)
def test_checkout_of_each_shape_trains_carft(installations, train_in_shape, kind, shape):
    first, last, printed = train_in_shape(installations[kind].run, shape)
    assert first["loss_kl"] == 0.0 < last["loss_kl"]
    assert "train_acc" not in last  # computed only for hosts that read it
    if shape == "parts":
        check_parts(first, last)
    if shape == "tables":  # the saved network has weights
        assert first["saved_weights"] == last["saved_weights"] > 0
    if shape == "clip":  # the host keeps its learning rate, and only facts are added
        assert last["hparams"]["lr"] == 5e-5
        assert not last["hparams"].keys() & {"kl_weight", "grad_clip", "lora_rank"}
        assert "lr is 5e-05 (by default 5e-06)" in printed


def test_sweep_of_checkout_trains_algorithms(installations, data, random_tiny, tmp_path):
    root = write_checkout(tmp_path / "a user's checkout", "classic")
    files_before = read_files(root)
    output = tmp_path / "output"
    hparams = {"clip_backbone": str(random_tiny), "batch_size": 4, "warmup_steps": 0}

    words = "-m domainbed.scripts.sweep launch --test_envs 1 --command_launcher local".split()
    words += ["--datasets", "Pets", "--data_dir", str(data), "--output_dir", str(output)]
    words += ["--algorithms", "CARFT", "CLIPZeroShot", "--hparams", json.dumps(hparams)]
    printed = run(installations["wheel"].run, root, *words)
    assert printed.count("CLIP input: undoes mean [0.485, ") == 2

    for file in output.glob("*/results.jsonl"):
        check_last_record(json.loads(file.read_text().splitlines()[-1]), "classic")
    assert read_files(root) == files_before


def test_dataset_class_of_its_page_trains_with_given_names(installations, tmp_path):
    """The classes and the sweep of the page. The stand-in for a checkout lacks two imports."""
    page = {block.title: block.text for block in blocks(REPO / "docs/howto/dataset-class.md")}
    root = write_checkout(tmp_path / "checkout", "classic")
    module = root / "domainbed" / "datasets.py"
    imports = "import torch\nfrom PIL import Image\n"
    module.write_text(imports + module.read_text() + page["hospital_scans.py"])

    noise = torch.Generator().manual_seed(0)
    class_names = YAML().load(page["scans.yaml"])["hparams"]["class_names"]
    lines = ["path,hospital,class"]
    for number in range(18):
        (tmp_path / "scans").mkdir(exist_ok=True)
        path = f"{number}.png"
        image = to_pil_image(torch.rand(1, 40, 30, generator=noise))  # greyscale
        image.save(tmp_path / "scans" / path)
        lines.append(f"{path},hospital {'ABC'[number % 3]},{class_names[number % 2]}")
    (tmp_path / "scans" / "scans.csv").write_text("\n".join(lines))

    hparams = {"class_names": class_names, "clip_backbone": "tiny", "batch_size": 4}
    words = "-m domainbed.scripts.train --algorithm CARFT --dataset HospitalScans".split()
    words += ["--test_envs", "1", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "j")]
    words += ["--hparams", json.dumps({**hparams, "warmup_steps": 0})]
    printed = run(installations["wheel"].run, root, *words)
    assert "Data: not verified" in printed and "images are resized from 224 to 48" in printed

    record = json.loads((tmp_path / "j" / "results.jsonl").read_text().splitlines()[-1])
    facts = record["hparams"]["facts"]
    templates = prompts.parse_contexts(record["hparams"]["contexts"])
    assert facts["prompts_digest"] == prompts.digest(templates, class_names)
    assert facts["protocol"] == "domainbed" and facts["data_edition"] == ""


def test_checkout_with_parts_trains_algorithm_without_optimizer(installations, train_in_shape):
    _, last, _ = train_in_shape(installations["editable"].run, "parts", "CLIPZeroShot")
    assert last["accuracy"] == pytest.approx(last["measured_accuracy"])
    assert last["rate"] == last["hparams"]["lr"]


def test_checkout_trains_every_algorithm(installations, tmp_path):
    root = write_checkout(tmp_path / "a user's checkout", "classic")
    script = str(REPO / "benchmarks" / "checkout_methods.py")
    printed = run(installations["wheel"].run, root, script, str(root))

    # A line is "NAME loss FIRST, SECOND".
    words = [line.replace(",", "").split() for line in printed.splitlines() if " loss " in line]
    losses = {name: (float(first), float(second)) for name, _, first, second in words}
    assert sorted(losses) == sorted(ALGORITHMS)
    # All other algorithms have the same first loss, because their penalties are zero.
    with_penalty = ("CLIPood", "CLIPMIRO", "FLYP", "CaRot")
    assert len({first for name, (first, _) in losses.items() if name not in with_penalty}) == 1
    unchanged = [name for name, (first, second) in losses.items() if first == second]
    assert unchanged == ["CLIPZeroShot"]


def train_host_algorithm(run_interpreter, root, data, output, algorithm, hparams):
    """Run `train` of a checkout with an algorithm of the host; return the process."""
    words = f"-m domainbed.scripts.train --algorithm {algorithm} --dataset Pets --test_envs 1"
    paths = ["--data_dir", str(data), "--output_dir", str(output)]
    return run_interpreter(
        *words.split(), *paths, "--hparams", json.dumps(hparams), cwd=root, OMP_NUM_THREADS="1"
    )


@pytest.mark.parametrize(
    ("shape", "algorithm", "head"),
    [
        ("classic", "ERM", "zero-shot"),
        ("classic", "Clones", "zero-shot"),
        ("classic", "Pairs", "random"),
        ("packages", "ERM", "random"),
    ],
)
def test_algorithm_of_checkout_trains_clip_model(
    installations, data, random_tiny, tmp_path, shape, algorithm, head
):
    root = write_checkout(tmp_path / "a user's checkout", shape)
    files_before = read_files(root)
    hparams = {"clip_backbone": str(random_tiny), "clip_head": head, "batch_size": 4}
    python = installations["wheel"].run
    done = train_host_algorithm(python, root, data, tmp_path / "job", algorithm, hparams)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_files(root) == files_before

    record = json.loads((tmp_path / "job" / "results.jsonl").read_text().splitlines()[-1])
    recorded = record["hparams"]
    assert record["step"] == 1 and record["loss"] > 0
    assert recorded["facts"]["clip_digest"] == weights.sha256(random_tiny)
    assert recorded["facts"]["preprocessing"] == "48 bicubic shortest"
    assert bool(recorded["facts"]["prompts_digest"]) == (head == "zero-shot")
    assert recorded["class_names"] == "dataset:Pets"
    if shape == "classic":  # the other registry has no learning rate
        assert recorded["lr"] == 5e-6
        assert "CLIP learning rate: lr 5e-06 instead of 5e-05" in done.stdout
        assert done.stdout.count("CLIP learning rate") == 1


@pytest.mark.parametrize(
    ("shape", "algorithm", "hparams", "message"),
    [
        ("classic", "Pairs", {"clip_head": "zero-shot"}, "Pairs has built no classifier from 128"),
        ("packages", "ERM", {"clip_head": "zero-shot"}, "ERM has built no classifier from 128"),
        ("classic", "ERM", {"clip_haed": "random"}, "no hyperparameter of ERM is called"),
    ],
)
def test_algorithm_of_checkout_ends_with_message_before_first_step(
    installations, data, random_tiny, tmp_path, shape, algorithm, hparams, message
):
    root = write_checkout(tmp_path / "a user's checkout", shape)
    hparams = {**hparams, "clip_backbone": str(random_tiny), "batch_size": 4}
    python = installations["wheel"].run
    done = train_host_algorithm(python, root, data, tmp_path / "job", algorithm, hparams)
    assert done.returncode == 1
    assert done.stderr.startswith("domainbed-carft: ") and message in done.stderr
    assert not (tmp_path / "job" / "results.jsonl").exists()


def test_penalty_of_features_is_compared_for_each_head(installations, tmp_path):
    root = write_checkout(tmp_path / "a user's checkout", "classic")
    script = str(REPO / "benchmarks" / "head_penalties.py")
    words = [script, str(root), "--algorithms", "Means"]
    printed = run(installations["wheel"].run, root, *words)
    rows = [line.split()[-3:] for line in printed.splitlines() if line.startswith("Means")]
    (_, zero_shot, scaled) = [[float(value) for value in row] for row in rows]
    assert scaled[0] == pytest.approx(zero_shot[0], abs=1e-4)
    assert scaled[1] == pytest.approx(1e4 * zero_shot[1], rel=0.1)


def test_checkout_with_its_own_clip_model_is_left_alone(installations, data, tmp_path):
    root = write_checkout(tmp_path / "a user's checkout", "clip")
    python = installations["wheel"].run
    hparams = {"clip_backbone": "a name of the fork", "batch_size": 4, "lr": 1e-3}
    done = train_host_algorithm(python, root, data, tmp_path / "job", "ERM", hparams)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("reads clip_backbone itself") == 1
    record = json.loads((tmp_path / "job" / "results.jsonl").read_text().splitlines()[-1])
    assert "facts" not in record["hparams"]

    code = """
from domainbed.datasets import EmojiStyles
for hparams in ({"clip_backbone": "tiny"}, {"clip_backbone": "tiny", "context_scale": 1}):
    print(EmojiStyles(None, [0], {"data_augmentation": True, **hparams}).input_shape)
"""
    printed = run(python, root, "-c", code)
    assert printed.splitlines() == ["(3, 224, 224)", "(3, 48, 48)"]  # of ERM, and of CARFT


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

before = snapshot()
domainbed_carft.register()
first = snapshot()
assert first != before, "nothing was added"
hparams_registry.default_hparams("CARFT", "Pets")
domainbed_carft.register()
second = snapshot()
print(*[key for key in {**first, **second} if first.get(key) != second.get(key)])
"""


@pytest.mark.parametrize("shape", ["classic", "tables", "packages"])
def test_second_registration_changes_nothing(installations, shape, tmp_path):
    root = write_checkout(tmp_path / "a user's checkout", shape)
    python = installations["wheel"].run
    assert run(python, root, "-c", SNAPSHOT, DOMAINBED_CARFT_DISABLE="1") == "\n"


HOST_CALLS = """
from domainbed import algorithms, hparams_registry
lookup, draw = algorithms.get_algorithm_class, hparams_registry.random_hparams
calls = [
    lambda: lookup("ERM").__name__,
    lambda: lookup(["ERM"]),
    lambda: lookup("Unheard"),
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


def test_calls_of_host_return_same_values_with_package(installations, tmp_path):
    root = write_checkout(tmp_path / "a user's checkout", "tables")
    python = partial(run, installations["wheel"].run, root, "-c", HOST_CALLS)
    extended = python()
    assert extended == python(DOMAINBED_CARFT_DISABLE="1")
    assert extended.splitlines()[0] == "ERM" and "TypeError" in extended
