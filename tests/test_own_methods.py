"""Methods from a user's own file or package: one file, and an algorithm everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch_interpreter
from fake_checkout import write_checkout
from runs_jobs import write_pictures

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import own_methods, records
from domainbed_carft.jobs.algorithms import SHIPPED
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers.options import PoolOptions, SlurmOptions
from domainbed_carft.launchers.pool import Pool
from domainbed_carft.launchers.slurm import Slurm
from domainbed_carft.report.plots import styles_of
from domainbed_carft.results import rows
from domainbed_carft.runs.saved import open_run

METHOD = '''
import os
import signal

from domainbed_carft.method.baselines import CLIPFineTune
from domainbed_carft.method.algorithm import Style
from domainbed_carft.method.hparams import nonnegative, power_of_ten


class Helper:
    pass


class _Base(CLIPFineTune):
    pass


class CLIPAnchor(_Base):
    STYLE = Style(row=2.5, colour="#123456", marker="p", dash="solid")
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
'''
TRAIN = "-m domainbed.scripts.train --test_envs 0".split()
HPARAMS = '{"batch_size": 4, "anchor_weight": 0.5, "clip_backbone": "tiny"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the file anchor.py, and pictures in Pets."""
    (tmp_path / "anchor.py").write_text(METHOD)
    write_pictures(tmp_path / "Pets")
    return tmp_path


def python(
    cwd: Path,
    *arguments: object,
    methods: str = "anchor.py",
    forks_others: bool = False,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in a folder with these files of methods."""
    all_variables = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    all_variables.pop(own_methods.VARIABLE, None)
    if methods:
        all_variables[own_methods.VARIABLE] = methods
    return torch_interpreter.run(
        sys.executable,
        *map(str, arguments),
        cwd=cwd,
        variables=all_variables,
        forks_others=forks_others,
    )


def train(
    cwd: Path,
    output: str,
    *data: str,
    steps: int = 2,
    name: str = "CLIPAnchor",
    **variables: str,
):
    """Run `train` on the folder Pets, or on other `data`."""
    words = [*TRAIN, *(data or ("--dataset", "./Pets")), "--steps", steps, "--algorithm", name]
    return python(cwd, *words, "--output_dir", output, "--hparams", HPARAMS, **variables)


# As a checkout of DomainBed finds it from its own folder.
PETS_OF_THE_HOST = ("--dataset", "Pets", "--data_dir", "..")


def last_record(folder: Path) -> dict:
    return json.loads((folder / "results.jsonl").read_text().splitlines()[-1])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_harness_trains_it_and_its_run_opens_where_the_file_is(folder: Path) -> None:
    done = train(folder, "JOB")
    assert done.returncode == 0, done.stderr

    record = last_record(folder / "JOB")
    assert record["loss_anchor"] > 0
    expected = record["loss_ce"] + 0.5 * record["loss_anchor"]
    assert record["loss"] == pytest.approx(expected, rel=1e-5)
    assert record["hparams"]["anchor_weight"] == 0.5
    assert record["method_digest"] == digest(folder / "anchor.py")
    assert record["method_file"] == "anchor.py"
    assert str(folder) not in json.dumps(record)

    # This process has no such file.
    with pytest.raises(CarftError) as error:
        open_run(folder / "JOB")
    assert own_methods.VARIABLE in str(error.value)
    assert "the path of anchor.py, the file that declares CLIPAnchor" in str(error.value)
    assert f"whose SHA-256 is {digest(folder / 'anchor.py')}" in str(error.value)
    code = "from domainbed_carft.runs.saved import open_run; print(open_run('JOB').title)"
    opened = python(folder, "-c", code)
    assert opened.stdout.splitlines()[-1:] == ["CLIPAnchor"], opened.stderr
    assert "another version" not in opened.stderr
    (folder / "anchor.py").write_text(METHOD + "# changed\n")
    assert "was trained by another version of the file" in python(folder, "-c", code).stderr


ADAPTER = """
import torch


class CLIPAdapter(CLIPAnchor):
    def build_for_prediction(self, encoder, weights, *arguments):
        super().build_for_prediction(encoder, weights, *arguments)
        width = weights.classes.shape[1]
        self.adapter = torch.nn.Linear(width, width)

    def class_logits(self, features):
        return super().class_logits(features + self.adapter(features))
"""
PREDICT_AND_REFUSE = """
import torch
from domainbed_carft import cli, load_run

run = load_run("JOB", device="cpu")
pictures = torch.randn(4, 3, 48, 48)
adapted = run.algorithm.predict(pictures)
for parameter in run.algorithm.adapter.parameters():
    parameter.data.zero_()
print((adapted - run.algorithm.predict(pictures)).abs().max() > 0.01)
print(cli.main(["export", "JOB", "-o", "out.pt"]))
print(cli.main(["wise-ft", "JOB", "-o", "mixed", "--alphas", "0", "--device", "cpu"]))
"""


def test_what_a_method_adds_to_the_prediction_is_neither_exported_nor_interpolated(
    folder: Path,
) -> None:
    (folder / "anchor.py").write_text(METHOD + ADAPTER)
    done = train(folder, "JOB", name="CLIPAdapter")
    assert done.returncode == 0, done.stderr

    done = python(folder, "-c", PREDICT_AND_REFUSE)

    assert done.stdout.splitlines()[-3:] == ["tensor(True)", "1", "1"], done.stderr
    assert not (folder / "out.pt").exists() and not (folder / "mixed").exists()
    for line in done.stderr.splitlines()[-2:]:
        assert "is a run of CLIPAdapter, which predicts by more than CLIP's image encoder" in line
        assert "a class_logits of its own, adapter.weight, adapter.bias" in line


def test_a_shipped_methods_records_are_the_same_with_the_file_and_without(folder: Path) -> None:
    code = (
        "from domainbed import algorithms, hparams_registry as r\n"
        "d = r.default_hparams\n"
        "print(sorted(d('CARFT', 'PACS').items()) , r.random_hparams('CARFT', 'PACS', 3))\n"
        "print('anchor_weight' in d('CARFT', 'PACS'), 'CLIPAnchor' in algorithms.ALGORITHMS)\n"
    )
    without, with_file = (python(folder, "-c", code, methods=m) for m in ("", "anchor.py"))
    *hparams, last = with_file.stdout.splitlines()
    assert hparams == without.stdout.splitlines()[:-1], with_file.stderr
    assert (without.stdout.splitlines()[-1], last) == ("False False", "False True")


def test_a_checkout_trains_it(folder: Path) -> None:
    root = write_checkout(folder / "checkout", "classic")
    done = train(root, "JOB", *PETS_OF_THE_HOST, methods="../anchor.py")
    assert done.returncode == 0, done.stderr

    record = last_record(root / "JOB")
    assert record["loss_anchor"] > 0 and record["hparams"]["anchor_weight"] == 0.5
    assert record["hparams"]["facts"]["method_digest"] == digest(folder / "anchor.py")
    code = (
        "from domainbed.hparams_registry import random_hparams\n"
        "print(random_hparams('CLIPAnchor', 'PACS', 1)['anchor_weight'])"
    )
    drawn = python(root, "-c", code, methods="../anchor.py")
    assert 0.01 < float(drawn.stdout.splitlines()[-1]) < 1


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with anchor.py and OUT, a declared sweep over the weight, run by the pool."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "anchor.py").write_text(METHOD)
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
    done = python(folder, *words.split(), forks_others=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_declared_sweep_over_its_weight_runs_by_the_pool(sweep: Path) -> None:
    runs, warnings = records.read([sweep / "OUT"])
    assert not warnings
    assert sorted(run.recorded["anchor_weight"] for run in runs) == [0, 0.1]
    assert {run.recorded["method_digest"] for run in runs} == {digest(sweep / "anchor.py")}

    written = [p for p in (sweep / "OUT").rglob("*") if p.suffix in (".json", ".jsonl", ".yaml")]
    assert len(written) >= 4
    assert not [path for path in written if "/anchor.py" in path.read_text()]


@pytest.mark.parametrize("file", ["", "broken.py"])
def test_tables_and_reports_need_no_file_and_run_none(sweep: Path, file: str) -> None:
    (sweep / "broken.py").write_text("open('it was run', 'w')\n")
    words = "-m domainbed_carft collect OUT --by anchor_weight"
    table = python(sweep, *words.split(), methods=file)
    assert table.returncode == 0, table.stderr
    assert "CLIPAnchor (anchor_weight 0.1)" in table.stdout

    page = sweep / f"report {file}"
    words = "-m domainbed_carft report OUT --n_examples 0 -o".split()
    report = python(sweep, *words, page, methods=file)
    assert report.returncode == 0, report.stderr
    assert "CLIPAnchor" in (page / "index.html").read_text()
    assert not (sweep / "it was run").exists()


def test_collect_loads_no_torch(sweep: Path) -> None:
    code = (
        "import sys; from domainbed_carft.cli import main\n"
        "sys.argv[1:] = ['collect', 'OUT']\n"
        "status = main()\n"
        "print(status, 'torch' in sys.modules)"
    )
    variables = {**os.environ, own_methods.VARIABLE: "anchor.py"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=sweep, env=variables, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0 False"], done.stderr


def test_a_table_that_mixes_two_files_says_so(sweep: Path, tmp_path: Path) -> None:
    """Two seeds of one weight, the second by another file."""
    shutil.copytree(sweep / "OUT", tmp_path / "OUT")
    (tmp_path / "OUT" / "sweep.json").unlink()
    first, second = sorted((tmp_path / "OUT").glob("*/*/results.jsonl"))
    text = first.read_text().replace('"trial_seed": 0', '"trial_seed": 1')
    second.write_text(text.replace(digest(sweep / "anchor.py"), 64 * "f"))

    def collect(*options: str) -> str:
        words = ["-m", "domainbed_carft", "collect", tmp_path / "OUT", *options]
        return python(sweep, *words, methods="").stdout

    printed = collect()
    assert f"file of CLIPAnchor {digest(sweep / 'anchor.py')[:12]}" in printed
    assert f"file of CLIPAnchor {12 * 'f'}" in printed
    merged = collect("--ignore", "method")
    assert "Not all runs have the same file of CLIPAnchor" in merged
    assert "(2)" in merged


def test_a_resume_with_a_changed_file_says_so(folder: Path) -> None:
    stopped = train(folder, "JOB", steps=3, STOP_AT="1")
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr

    (folder / "anchor.py").write_text(METHOD + "# changed\n")
    refused = train(folder, "JOB", steps=3)
    assert refused.returncode == 2  # no launcher tries it again
    assert "is of a run with other facts (method_digest: " in refused.stderr

    (folder / "anchor.py").write_text(METHOD)
    resumed = train(folder, "JOB", steps=3)
    assert resumed.returncode == 0, resumed.stderr
    assert last_record(folder / "JOB")["step"] == 2


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
    f"{HEAD}class ERM(CLIPFineTune):\n    pass": "the name ERM is taken by domainbed.algorithms",
    f"{HEAD}class CLIPAnchor(CLIPFineTune):\n    pass": "the name CLIPAnchor is taken by one in ",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = (nonnegative('w'),)": "line 4, cannot be loaded: "
    "TypeError: nonnegative() missing 1 required positional argument: 'default'",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = (nonnegative('w', None),)": "A.HPARAMS: w has no "
    "valid default, expected a number >= 0",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = ('w',)": "A.HPARAMS has 'w', expected hyperpara",
    f"{HEAD}class A(CLIPFineTune):\n    HPARAMS = nonnegative('w', 1)": "A.HPARAMS is no tuple",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: BROKEN[text][:40])
def test_a_file_that_cannot_be_used_is_an_error_before_a_job_starts(
    folder: Path, text: str
) -> None:
    (folder / "other.py").write_text(text)
    done = train(folder, "JOB", name="CLIPPlain", methods="anchor.py:other.py")
    assert done.returncode == 2
    assert f"{folder}/" in done.stderr and BROKEN[text] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "JOB" / "results.jsonl").exists()


def test_sweeps_and_checkouts_say_so_too(folder: Path) -> None:
    flags = "--datasets EmojiStyles --algorithms CARFT --data_dir . --output_dir OUT".split()
    flags += ["--command_launcher", "local"]
    launches = {
        folder: ["--single_test_envs", "--skip_confirmation"],
        write_checkout(folder / "checkout", "classic"): ["--test_envs", "1"],
    }
    for root, more in launches.items():
        words = ["-m", "domainbed.scripts.sweep", "launch", *flags, *more]
        done = python(root, *words, methods="missing.py")
        assert done.returncode in (1, 2)
        assert f"{own_methods.VARIABLE} names {root}/missing.py" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (root / "OUT").exists()

    in_checkout = train(
        folder / "checkout", "JOB", *PETS_OF_THE_HOST, name="CARFT", methods="missing.py"
    )
    assert in_checkout.returncode == 1
    assert in_checkout.stderr.startswith(f"domainbed-carft: {own_methods.VARIABLE} names ")

    declaration = '{"name": "x", "datasets": ["EmojiStyles"], "algorithms": ["CARFT", "CLIPPlain"]}'
    (folder / "x.yaml").write_text(declaration)
    words = "-m domainbed_carft sweep launch x.yaml --output_dir OUT --yes".split()
    declared = python(folder, *words, methods="anchor.py:missing.py")
    assert declared.returncode == 1
    assert declared.stderr.startswith(f"carft: {own_methods.VARIABLE} names {folder}/missing.py")


def test_an_entry_point_of_a_package_names_a_module(folder: Path) -> None:
    package = folder / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("WEIGHT = 0.25\n")
    text = METHOD.replace('"anchor_weight", 0.1', '"anchor_weight", WEIGHT')
    (package / "anchor.py").write_text(f"from .base import WEIGHT\n{text}")
    information = folder / "site" / "my_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")

    code = (
        "import my_package.anchor\n"  # which is half imported when the plugin comes to it
        "from domainbed import algorithms, hparams_registry\n"
        "default = hparams_registry.default_hparams('CLIPAnchor', 'PACS')['anchor_weight']\n"
        "print(default, algorithms.get_algorithm_class('CLIPAnchor').method_digest)"
    )

    def ask(value: str) -> subprocess.CompletedProcess[str]:
        points = f"[{own_methods.ENTRY_POINTS}]\nanchor = {value}\n"
        (information / "entry_points.txt").write_text(points)
        return python(folder, "-c", code, methods="", PYTHONPATH=str(folder / "site"))

    done = ask("my_package.anchor")
    assert done.stdout.splitlines()[-1:] == [f"0.25 {digest(package / 'anchor.py')}"], done.stderr
    wrong = ask("my_package.nothing")
    assert "the entry point anchor = my_package.nothing of my-package: no source" in wrong.stderr


def test_styles_and_rows_are_read_from_source_that_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "anchor.py"
    file.write_text(f"raise SystemExit\n{METHOD}")
    names = ["CLIPLinearProbe", "CLIPPlain", "CLIPAnchor", "CLIPFineTune"]
    neutral = styles_of(["CLIPPlain"])["CLIPPlain"]

    assert styles_of(["CLIPAnchor"])["CLIPAnchor"] == neutral
    monkeypatch.setenv(own_methods.VARIABLE, f"{file}:{tmp_path / 'missing.py'}")
    styles = styles_of(["CLIPAnchor", "CLIPPlain", "CARFT"])
    assert styles["CLIPAnchor"].colour == "#123456" and styles["CLIPAnchor"].row == 2.5
    assert styles["CLIPPlain"] == neutral
    assert styles["CARFT"] == SHIPPED["CARFT"].style
    expected = ["CLIPFineTune", "CLIPAnchor", "CLIPLinearProbe", "CLIPPlain"]
    assert rows.ordered_rows(names) == expected


def test_launchers_give_jobs_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(own_methods.VARIABLE, f"a.py:{tmp_path}/b.py")
    expected = f"{tmp_path}/a.py:{tmp_path}/b.py"
    (slot,) = Pool(PoolOptions(jobs=1)).slots(1)
    assert slot[own_methods.VARIABLE] == expected

    submitted = []

    def submit(self, sweep, elements, previous):
        submitted.extend(elements)

    monkeypatch.setattr(Slurm, "_submit", submit)
    monkeypatch.setattr(Slurm, "problems", lambda self, sweeps: [])
    Slurm(SlurmOptions())([Job({}, tmp_path / "sweep" / "job")])
    assert submitted[0].environment[own_methods.VARIABLE] == expected

    monkeypatch.delenv(own_methods.VARIABLE)
    assert own_methods.VARIABLE not in Pool(PoolOptions(jobs=1)).slots(1)[0]
