"""Methods from a user's own file or package: one file, and an algorithm everywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from domainbed import algorithms as host
from fake_checkout import REPO, run_python, write_checkout
from runs_jobs import records as read_records
from runs_jobs import train_job, write_images
from test_algorithms import make, minibatches, reopened
from test_docs import blocks

import domainbed_carft
from domainbed_carft import cli
from domainbed_carft.errors import CarftError, CarftWarning
from domainbed_carft.jobs import own_methods, records
from domainbed_carft.jobs.algorithms import SHIPPED, find_own_methods, get_owners
from domainbed_carft.launchers.options import PoolOptions
from domainbed_carft.launchers.pool import Pool
from domainbed_carft.method import algorithms
from domainbed_carft.method.own_methods import OwnMethods, get_declarations, load
from domainbed_carft.report.plots import get_styles
from domainbed_carft.results.collection import gather
from domainbed_carft.runs import soup, wise_ft
from domainbed_carft.styles import Style

(SECOND_OPTIMIZER,) = (
    block.text
    for block in blocks(REPO / "docs" / "howto" / "own-method.md")
    if block.title == "temperature.py"
)
METHOD = '''
import os
import signal

import torch

from domainbed_carft.method.baselines import CLIPFineTune
from domainbed_carft.method.algorithm import Style
from domainbed_carft.method.hparams import nonnegative, power_of_ten


class Helper:
    pass


class _Base(CLIPFineTune):
    pass


class CLIPAnchor(_Base):
    STYLE = Style(row=2.5, colour="#123456", marker="p", dash=(0, (5, 1)))
    HPARAMS = (nonnegative("anchor_weight", 0.1, draw=power_of_ten(-2, 0), meaning="a weight"),)
    uses_original = True

    def loss(self, batch):
        if self.steps_taken == int(os.environ.get("STOP_AT", -1)):
            os.kill(os.getpid(), signal.SIGTERM)
        losses = super().loss(batch)
        gap = (batch.tuned.features - batch.original.features).square().sum(dim=-1).mean()
        loss = losses["loss"] + self.hparams["anchor_weight"] * gap
        return {**losses, "loss": loss, "loss_anchor": gap}


class CLIPPlain(CLIPFineTune):
    """One without a style and hyperparameters."""


class CLIPAdapter(CLIPAnchor):
    def build_for_prediction(self, encoder, weights, *arguments):
        super().build_for_prediction(encoder, weights, *arguments)
        width = weights.classes.shape[1]
        self.adapter = torch.nn.Linear(width, width)

    def class_logits(self, features):
        return super().class_logits(features + self.adapter(features))


class CLIPCentre(CLIPTemperature):
    def build_for_training(self, *arguments):
        super().build_for_training(*arguments)
        self.register_buffer("centre", torch.zeros(self.head.in_features))
        self.projection = torch.nn.Linear(self.head.in_features, 2)

    def loss(self, batch):
        losses = super().loss(batch)
        features = batch.tuned.features
        gap = self.projection(features - self.centre).square().mean()
        self.centre.lerp_(features.detach().mean(dim=0), 0.1)
        return {**losses, "loss": losses["loss"] + 0.01 * gap}
'''
TRAINING_ONLY = ["log_temperature", "centre", "projection.weight", "projection.bias"]
HPARAMS = '{"batch_size": 4, "anchor_weight": 0.5, "clip_backbone": "tiny"}'
TRAIN = "-m domainbed.scripts.train --test_envs 0 --output_dir JOB".split()
TRAIN += ["--hparams", HPARAMS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the file anchor.py."""
    (tmp_path / "anchor.py").write_text(SECOND_OPTIMIZER + METHOD)
    return tmp_path


@pytest.fixture
def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> OwnMethods:
    """The methods of anchor.py, loaded into this process."""
    monkeypatch.setenv(own_methods.VARIABLE, str(folder / "anchor.py"))
    loaded = load(SHIPPED, own_methods.find_files())
    for name, algorithm in loaded.classes.items():
        monkeypatch.setitem(algorithms.CLASSES, name, algorithm)
    return loaded


def python(
    cwd: Path, *arguments: str, methods: str = "anchor.py"
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in a folder with these files of methods."""
    return run_python(*arguments, cwd=cwd, **{own_methods.VARIABLE: methods}, OMP_NUM_THREADS="1")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_run_of_an_own_method_opens_only_with_its_file(
    folder: Path, loaded: OwnMethods, random_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = make(random_tiny, "CLIPAnchor", anchor_weight=0.5)
    algorithm.update(minibatches(0))
    values = algorithm.update(minibatches(1))
    expected = values["loss_ce"] + 0.5 * values["loss_anchor"]
    assert values["loss"] == pytest.approx(expected, rel=1e-5) and values["loss_anchor"] > 0
    assert reopened(algorithm, folder).title == "CLIPAnchor"

    monkeypatch.setattr(loaded.classes["CLIPAnchor"], "method_digest", 64 * "f")
    with pytest.warns(CarftWarning, match="was trained by another version of the file"):
        domainbed_carft.load_run(folder / "model.pkl")

    monkeypatch.delitem(algorithms.CLASSES, "CLIPAnchor")
    with pytest.raises(CarftError) as error:
        domainbed_carft.load_run(folder / "model.pkl")
    assert own_methods.VARIABLE in str(error.value)
    assert "the path of anchor.py, the file that declares CLIPAnchor" in str(error.value)
    assert f"whose SHA-256 is {digest(folder / 'anchor.py')}" in str(error.value)


def test_layers_added_to_the_prediction_are_not_exported_or_interpolated(
    folder: Path, loaded: OwnMethods, random_tiny: Path
) -> None:
    algorithm = make(random_tiny, "CLIPAdapter")
    run = reopened(algorithm, folder)
    x = minibatches()[0][0]
    assert torch.equal(run.algorithm.predict(x), algorithm.eval().predict(x))

    message = "needs more than CLIP's image encoder.* a class_logits of its own, adapter.weig"
    with pytest.raises(CarftError, match=message):
        domainbed_carft.export(run, folder / "out.pt")
    with pytest.raises(CarftError, match=message):
        wise_ft.make_alpha_setter(run, str(random_tiny))
    assert not (folder / "out.pt").exists()


def test_run_whose_training_needs_more_than_prediction_is_evaluated_exported_and_averaged(
    folder: Path, loaded: OwnMethods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "CLIPCentre", loaded.classes["CLIPCentre"], raising=False)
    job = train_job(folder / "job", write_images(folder / "Pets"), "CLIPCentre")
    content = torch.load(job / "model.pkl", weights_only=True)
    assert sorted(content["training_only_names"]) == sorted(TRAINING_ONLY)
    assert content["model_dict"]["centre"].any() and content["model_dict"]["log_temperature"] != 0
    run = domainbed_carft.load_run(job, "last", device="cpu")
    assert not run.algorithm.state_dict().keys() & {*TRAINING_ONLY}

    *_, record = read_records(job)
    scores = domainbed_carft.evaluate(run, device="cpu", workers=0)
    accuracies = {name: scores.sets[name].accuracy for name in ("env0_in", "env1_out")}
    assert accuracies == {name: pytest.approx(record[f"{name}_acc"]) for name in accuracies}

    exported = domainbed_carft.export(run, folder / "out.pt")
    projection = torch.load(exported.weights, weights_only=True)["visual.proj"]
    assert torch.equal(projection, content["model_dict"]["encoder.proj"])

    options = {"device": "cpu", "workers": 0}
    wise_ft.wise_ft(run, [0.5], save=[0.5], output=folder / "mixed", **options)
    soup.soup([job / "model.pkl", job / "model_best.pkl"], output=folder / "soup", **options)
    for file in ("mixed/model_alpha_0.50.pkl", "soup/model_soup_uniform.pkl"):
        assert torch.load(folder / file, weights_only=True)["training_only_names"] == []
        assert domainbed_carft.load_run(folder / file, device="cpu").algorithm.restored


@pytest.mark.parametrize("names", [None, TRAINING_ONLY])
def test_weights_file_without_a_weight_for_prediction_is_an_error(
    names: list[str] | None, folder: Path, loaded: OwnMethods, random_tiny: Path
) -> None:
    reopened(make(random_tiny, "CLIPCentre"), folder)
    content = torch.load(folder / "model.pkl", weights_only=True)
    content["training_only_names"] = names
    del content["model_dict"]["head_factor"]
    torch.save(content, folder / "model.pkl")
    with pytest.raises(CarftError, match=r"Missing key.*head_factor.*was the file changed"):
        domainbed_carft.load_run(folder / "model.pkl", device="cpu")


def test_what_prediction_lacks_in_a_saved_run_is_named(
    loaded: OwnMethods, folder: Path, random_tiny: Path
) -> None:
    run = reopened(make(random_tiny, "CLIPCentre"), folder)
    with pytest.raises(AttributeError, match="'centre': .* only what build_for_prediction builds"):
        _ = run.algorithm.centre


def test_hyperparameters_of_an_own_method_are_only_in_its_records(loaded: OwnMethods) -> None:
    assert "anchor_weight" not in algorithms.hparam_values("CARFT", "PACS")
    assert algorithms.hparam_values("CLIPAnchor", "PACS")["anchor_weight"] == 0.1
    assert 0.01 < algorithms.hparam_values("CLIPAnchor", "PACS", 3)["anchor_weight"] < 1


STOP_AND_RESUME = """
import os, sys
from domainbed import algorithms
from domainbed.scripts import train

method = algorithms.get_algorithm_class("CLIPAnchor")
digest = method.method_digest
for stop_at, method.method_digest in (("1", digest), ("-1", 64 * "f"), ("-1", digest)):
    os.environ["STOP_AT"] = stop_at
    print(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_harness_trains_an_own_method_and_resumes_only_with_the_same_file(folder: Path) -> None:
    write_images(folder / "Pets")
    words = "--dataset ./Pets --algorithm CLIPAnchor --steps 2 --workers 0".split()
    done = python(folder, "-c", STOP_AND_RESUME, *TRAIN[2:], *words)
    statuses = [line for line in done.stdout.splitlines() if line in ("75", "2", "0")]
    assert statuses == ["75", "2", "0"], done.stderr
    assert "belongs to a job with other facts (method_digest: " in done.stderr

    *_, record = read_records(folder / "JOB")
    assert record["step"] == 1 and record["loss_anchor"] > 0
    assert record["hparams"]["anchor_weight"] == 0.5
    assert record["method_digest"] == digest(folder / "anchor.py")
    assert record["method_file"] == "anchor.py"
    assert record["method_declarations"]["style"]["colour"] == "#123456"
    assert str(folder) not in json.dumps(record)


@pytest.mark.slow
def test_checkout_trains_an_own_method(folder: Path) -> None:
    write_images(folder / "Pets")
    root = write_checkout(folder / "checkout", "classic")
    words = "--dataset Pets --data_dir .. --algorithm CLIPAnchor --steps 2".split()
    done = python(root, *TRAIN, *words, methods="../anchor.py")
    assert done.returncode == 0, done.stderr
    *_, record = read_records(root / "JOB")
    assert record["loss_anchor"] > 0 and record["hparams"]["anchor_weight"] == 0.5
    assert record["hparams"]["facts"]["method_digest"] == digest(folder / "anchor.py")


@pytest.mark.slow
def test_pool_runs_a_declared_sweep_over_the_weight_of_an_own_method(folder: Path) -> None:
    declaration = {
        "name": "anchor",
        "datasets": ["Debug28"],
        "algorithms": ["CLIPAnchor"],
        "test_environments": ["0"],
        "trials": 1,
        "steps": 2,
        "hparams": {"batch_size": 4},
        "grid": {"anchor_weight": [0, 0.1]},
    }
    (folder / "anchor.yaml").write_text(json.dumps(declaration))
    words = "-m domainbed_carft sweep launch anchor.yaml --output_dir OUT --launcher pool --yes"
    done = python(folder, *words.split())
    assert done.returncode == 0, done.stdout + done.stderr
    runs, warnings = records.read([folder / "OUT"])
    assert not warnings
    assert sorted(run.recorded["anchor_weight"] for run in runs) == [0, 0.1]
    assert {run.recorded["method_digest"] for run in runs} == {digest(folder / "anchor.py")}

    written = [p for p in (folder / "OUT").rglob("*") if p.suffix in (".json", ".jsonl", ".yaml")]
    assert len(written) >= 4
    assert not [path for path in written if "/anchor.py" in path.read_text()]

    refused = python(folder, *words.split(), methods="anchor.py:missing.py")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"carft: {own_methods.VARIABLE} names {folder}/missing.py")


def write_runs(pets: Path, folder: Path, **facts: object) -> None:
    """Runs with two weights, and of one weight a second seed, by another file."""
    for weight, seed in ((0.1, 0), (0.1, 1), (0.2, 0)):
        job = shutil.copytree(pets / "CARFT", folder / f"{weight} {seed}")
        lines = []
        for record in read_records(job):
            record["args"] |= {"algorithm": "CLIPAnchor", "trial_seed": seed}
            record["args"]["hparams"] = json.dumps({"anchor_weight": weight})
            record["hparams"]["anchor_weight"] = weight
            record |= {"method_digest": 64 * str(seed), "method_file": "anchor.py", **facts}
            lines.append(json.dumps(record) + "\n")
        (job / "results.jsonl").write_text("".join(lines))


def test_tables_and_reports_do_not_execute_method_files(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("open('it was run', 'w')\n")
    monkeypatch.setenv(own_methods.VARIABLE, "broken.py")
    write_runs(pets, tmp_path / "OUT")

    assert cli.main(["collect", "OUT", "--by", "anchor_weight"]) == 0
    printed = capsys.readouterr().out
    assert "CLIPAnchor (anchor_weight 0.1)" in printed
    assert f"file of CLIPAnchor {12 * '0'}" in printed and f"of CLIPAnchor {12 * '1'}" in printed
    assert cli.main(["collect", "OUT", "--ignore", "method"]) == 0
    assert "Runs differ in file of CLIPAnchor" in capsys.readouterr().out
    assert cli.main(["report", "OUT", "-o", "page"]) == 0
    assert "CLIPAnchor" in Path("page", "index.html").read_text()
    assert not Path("it was run").exists()


BROKEN = {
    "from domainbed_carft import nothing_such": "line 1, cannot be loaded: ImportError",
    "x = 1\nclass A(": "line 2, cannot be loaded: SyntaxError",
    "class A:\n    pass": "has no public class that derives from CLIPAlgorithm",
}
HEAD = (
    "from domainbed_carft.method.baselines import CLIPFineTune\n"
    "from domainbed_carft.method.hparams import nonnegative\n"
)
BROKEN |= {
    f"{HEAD}class CARFT(CLIPFineTune):\n    pass": "the name CARFT is taken by an algorithm of ",
    f"{HEAD}class CLIPAnchor(CLIPFineTune):\n    pass": "the name CLIPAnchor is taken by one in ",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = (nonnegative('w'),)": "line 4, cannot be loaded: "
    "TypeError: nonnegative() missing 1 required positional argument: 'default'",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = (nonnegative('w', None),)": "A.HPARAMS: w has no "
    "valid default, expected a number >= 0",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = ('w',)": "A.HPARAMS has 'w', expected hyperpara",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = nonnegative('w', 1)": "A.HPARAMS is",
    f"{HEAD}class A(CLIPFineTune):\n    def __init__(self, shape, classes, domains, hparams):\n"
    "        pass": "A.__init__ does not take the facts of the dataset",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: BROKEN[text][:40])
def test_unusable_file_is_named_with_its_problem(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "other.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(own_methods.VARIABLE, "anchor.py:other.py")
    (problem,) = load(SHIPPED, own_methods.find_files()).problems
    assert problem.startswith(f"{folder}/other.py") and BROKEN[text] in problem


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(own_methods.VARIABLE, str(tmp_path / "missing.py"))
    (problem,) = load(SHIPPED, own_methods.find_files()).problems
    assert problem.startswith(f"{own_methods.VARIABLE} names {tmp_path}/missing.py, which cannot")


@pytest.mark.slow
def test_method_named_like_a_host_algorithm_is_an_error_before_training(folder: Path) -> None:
    (folder / "anchor.py").write_text(f"{HEAD}class ERM(CLIPFineTune):\n    pass")
    done = python(folder, *TRAIN, "--dataset", "EmojiStyles", "--algorithm", "CARFT")
    assert done.returncode == 2
    assert f"{folder}/anchor.py: the name ERM is taken by domainbed.algorithms" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "JOB" / "results.jsonl").exists()


@pytest.mark.slow
def test_entry_point_of_a_package_names_a_module(folder: Path) -> None:
    package = folder / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("WEIGHT = 0.25\n")
    text = METHOD.replace('"anchor_weight", 0.1', '"anchor_weight", WEIGHT')
    (package / "anchor.py").write_text(f"from .base import WEIGHT\n{SECOND_OPTIMIZER}{text}")
    information = folder / "site" / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    points = "anchor = my_package.anchor\nwrong = my_package.nothing\n"
    (information / "entry_points.txt").write_text(f"[{own_methods.ENTRY_POINTS}]\n{points}")

    code = (
        "import my_package.anchor\n"  # which is half imported when the plugin comes to it
        "from domainbed_carft.method import algorithms\n"
        "print(algorithms.hparam_values('CLIPAnchor', 'PACS')['anchor_weight'])\n"
        "print(algorithms.CLASSES['CLIPAnchor'].method_digest)\n"
        "print(*algorithms.OWN_PROBLEMS)\n"
    )
    done = run_python("-c", code, cwd=folder, path=[folder / "site"])
    weight, printed_digest, problem = done.stdout.splitlines()
    assert (weight, printed_digest) == ("0.25", digest(package / "anchor.py"))
    assert (
        "the entry point wrong = my_package.nothing of my-package: the module has no source"
        in problem
    )


def test_styles_and_rows_of_own_methods_come_from_records(
    pets: Path, tmp_path: Path, loaded: OwnMethods
) -> None:
    declarations = loaded.classes["CLIPAnchor"].method_declarations
    write_runs(pets, tmp_path / "OUT", method_declarations=declarations)
    collection = gather(tmp_path / "OUT", ignored=["method"])
    styles = get_styles(["CLIPAnchor", "CLIPPlain", "CARFT"], collection.own_methods)
    assert styles["CLIPAnchor"] == Style(2.5, "#123456", "p", dash=(0, (5, 1)))
    assert styles["CLIPPlain"] == get_styles(["CLIPPlain"])["CLIPPlain"]
    assert styles["CARFT"] == SHIPPED["CARFT"].style

    expected = ["CLIPFineTune", "CLIPAnchor", "CLIPLinearProbe", "CLIPPlain"]
    assert collection.groups[0].order_rows(sorted(expected)) == expected
    assert get_owners("anchor_weight", collection.own_methods) == {"CLIPAnchor"}


@pytest.mark.parametrize(
    "declarations",
    [
        {"style": {"row": 1, "colour": "no colour", "marker": "o", "dash": "solid"}, "hparams": []},
        {"style": {"row": "first", "colour": "red", "marker": "o", "dash": ""}, "hparams": []},
        {"style": {"row": 1, "colour": "red", "marker": "o", "dash": [0, [-1]]}, "hparams": []},
        {"style": {"row": 1}, "hparams": []},
        {"style": "red", "hparams": []},
        {"style": None, "hparams": 1},
        "CARFT",
    ],
)
def test_damaged_style_in_a_record_is_replaced(declarations: object) -> None:
    recorded = {"method_file": "anchor.py", "method_declarations": declarations}
    methods = find_own_methods({"CLIPAnchor": recorded})
    assert get_styles(["CLIPAnchor"], methods) == get_styles(["CLIPAnchor"])


@pytest.mark.parametrize("name", SHIPPED)
def test_table_of_algorithms_has_the_hyperparameters_of_each_class(name: str) -> None:
    assert [*SHIPPED[name].hparams] == get_declarations(algorithms.CLASSES[name])["hparams"]


def test_launchers_give_jobs_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(own_methods.VARIABLE, f"a.py:{tmp_path}/b.py")
    (slot,) = Pool(PoolOptions(jobs=1)).slots(1)
    assert slot[own_methods.VARIABLE] == f"{tmp_path}/a.py:{tmp_path}/b.py"

    monkeypatch.delenv(own_methods.VARIABLE)
    assert own_methods.VARIABLE not in Pool(PoolOptions(jobs=1)).slots(1)[0]
