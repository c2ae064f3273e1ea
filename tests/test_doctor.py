"""`carft doctor`: in interpreters of its own, without torch or forked, which start at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch_interpreter
from fake_checkout import (
    REPO,
    module_text,
    run_python,
    run_python_with_torch,
    write_checkout,
    write_files,
    write_start_hook,
)

from domainbed_carft import cli, doctor
from domainbed_carft.cli import doctor as doctor_command
from domainbed_carft.clips import openai
from domainbed_carft.doctor import NOTE, OK, PROBLEM, SKIPPED, Finding
from domainbed_carft.jobs.algorithms import ALGORITHMS

HARNESS = REPO / "third_party" / "domainbed"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing in it: no torch and no start file."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def with_torch() -> str:
    """An interpreter that has imported torch, as those that it starts; else it is this one."""
    return torch_interpreter.executable(sys.executable, forks_others=True)


def json_of(python: Any, folder: Path, *arguments: str, **options: Any) -> tuple[int, Any]:
    """Exit status and JSON of an interpreter with our hook, in an empty folder by default."""
    empty = folder / "an empty folder"
    empty.mkdir(exist_ok=True)
    options.setdefault("cwd", empty)
    options.setdefault("path", [write_start_hook(folder / "hook"), REPO])
    options.setdefault("HOME", str(folder / "home"))

    done = run_python(*arguments, python=python, OMP_NUM_THREADS="1", **options)

    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def examine(python: Any, folder: Path, **options: Any) -> dict[str, Finding]:
    """The worst finding of each name, by `carft doctor --json`."""
    arguments = ("-m", "domainbed_carft", "doctor", "--json")
    status, report = json_of(python, folder, *arguments, **options)
    findings = [Finding(**fields) for fields in report["findings"]]
    findings.sort(key=lambda finding: (SKIPPED, OK, NOTE, PROBLEM).index(finding.state))

    has_problem = findings[-1].state == PROBLEM
    assert status == int(has_problem)
    assert report["ok"] == (not has_problem)
    return {finding.name: finding for finding in findings}


def train(checkout: Path, home: Path, algorithm: str, *arguments: str) -> Any:
    """The outcome of the checkout's own `train`, with our hook, on data that is not there."""
    no_data = "--data_dir nowhere --dataset Pets --test_envs 0 --output_dir out".split()
    return run_python_with_torch(
        "-m",
        "domainbed.scripts.train",
        "--algorithm",
        algorithm,
        *no_data,
        *arguments,
        cwd=checkout,
        HOME=str(home),
    )


@pytest.fixture
def classic(tmp_path: Path) -> Path:
    """A copy of the checkout `classic`."""
    return write_checkout(tmp_path / "host", "classic")


def test_doctor_finds_a_checkout_in_the_current_folder_or_on_the_path(
    bare: Path, tmp_path: Path
) -> None:
    checkout = write_checkout(tmp_path / "my checkout's root")
    expected = Finding("domainbed", OK, f"foreign: {checkout / 'domainbed'}")

    in_current_folder = examine(bare, tmp_path, cwd=checkout)
    assert in_current_folder["domainbed"] == expected

    path = [write_start_hook(tmp_path / "hook"), REPO, checkout]
    assert examine(bare, tmp_path, path=path)["domainbed"] == expected


@pytest.mark.parametrize(
    ("name", "files", "detail", "remedy"),
    [
        (
            "domainbed.datasets",
            {"datasets": "exec('import wilds')\n" + module_text("datasets")},
            "import of domainbed.datasets fails: No module named 'wilds'",
            "pip install wilds",
        ),
        (
            "domainbed",
            {"algorithms": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"},
            "a fresh interpreter ended: killed by SIGKILL",
            "faulthandler",
        ),
    ],
)
def test_a_host_that_fails_to_import_is_a_problem_with_a_remedy(
    bare: Path, tmp_path: Path, name: str, files: Any, detail: str, remedy: str
) -> None:
    host = write_checkout(tmp_path / "host", modules=files)

    findings = examine(bare, tmp_path, cwd=host)

    assert findings["hook"].state == OK
    assert findings[name].state == PROBLEM
    assert detail in findings[name].found
    assert remedy in findings[name].remedy


def test_a_host_that_hangs_is_stopped_and_reported(bare: Path, tmp_path: Path) -> None:
    host = write_checkout(tmp_path / "host", modules={"__init__": "import time; time.sleep(120)\n"})
    code = """
import json
from domainbed_carft.doctor import run_checks
print(json.dumps(vars(run_checks(patience=1.5)[-1])))
"""
    _, fields = json_of(bare, tmp_path, "-c", code, cwd=host)

    last = Finding(**fields)
    assert (last.name, last.state) == ("domainbed", PROBLEM)
    assert "did not finish within 1.5 seconds and was stopped" in last.found


def test_a_disabled_hook_is_reported_with_the_variable(bare: Path, tmp_path: Path) -> None:
    findings = examine(bare, tmp_path, DOMAINBED_CARFT_DISABLE="yes")

    detail = "not active: DOMAINBED_CARFT_DISABLE is 'yes'"
    remedy = "unset DOMAINBED_CARFT_DISABLE"
    assert findings["hook"] == Finding("hook", PROBLEM, detail, remedy)
    assert findings["domainbed"].state == PROBLEM, "without the hook there is no harness"


def test_a_missing_start_file_is_reported_with_the_remedy(tmp_path: Path, bare: Path) -> None:
    hook = examine(bare, tmp_path, path=[REPO])["hook"]

    (site_packages,) = bare.parent.parent.glob("lib/python3*/site-packages")
    assert hook.state == PROBLEM
    assert f"pth is missing or damaged in {site_packages}" in hook.found
    assert f"-m pip install {REPO}" in hook.remedy


def test_without_torch_every_problem_says_what_to_do(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "cache")

    findings = examine(bare, tmp_path, DOMAINBED_CARFT_CACHE=cache)

    detail = "import of torch fails: No module named 'torch'"
    expected = Finding("imports torch", PROBLEM, detail, "pip install torch")
    assert findings["imports torch"] == expected
    assert {f"imports {name}" for name in doctor.MODULES} <= findings.keys()
    assert findings["cache"].state == PROBLEM and cache in findings["cache"].found
    step = Finding("step", NOTE, "No module named 'torch'", "pip install torch")
    assert findings["step"] == step


# A train of its steps on no data, as short as a checkout's can be; each line can be replaced.
STEP = [
    "import json, sys, pathlib",
    "folder = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1])",
    "folder.mkdir()",
    "record = {'step': 0, 'env0_in_acc': 0.5}",
    "(folder / 'results.jsonl').write_text(json.dumps(record))",
    "pass",
    "(folder / 'done').touch()",
]


# The record of a fork that evaluates after step 0 only.
AFTER_STEP_0 = "record = {'step': 1, 'env0_in_acc': 1} if '--steps 2' in ' '.join(sys.argv) else {}"


@pytest.mark.parametrize(
    ("line", "code", "states", "detail"),
    [
        (5, "pass", [OK], "two steps of CARFT on EmojiStyles by its own command"),
        (5, "None.classifier", [PROBLEM], "exit status 1: AttributeError: 'NoneType' object has"),
        (5, "json.loads('{')", [PROBLEM], "/domainbed/scripts/train.py:6)"),  # not json's file
        (3, AFTER_STEP_0, [OK], "two steps of CARFT on EmojiStyles by its own command"),
        (6, "pass", [OK, PROBLEM], "ended with status 0 but wrote no file 'done'"),
        (3, "record = {'step': 0}", [OK, PROBLEM], "its records have no accuracies"),
        (4, "pass", [OK, PROBLEM], "its records have no accuracies"),
        (1, "import time; time.sleep(300)", [PROBLEM], "did not finish within 5 seconds"),
        (
            1,
            "import argparse; argparse.ArgumentParser().parse_args()",
            [SKIPPED],
            "not tried: train.py: error: unrecognized arguments: --algorithm CARFT",
        ),
    ],
)
def test_doctor_judges_a_step_of_the_hosts_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, code: str, states: Any, detail: str
) -> None:
    lines = list(STEP)
    lines[line] = code
    write_checkout(tmp_path, modules={"scripts/train": "\n".join(lines)})
    monkeypatch.chdir(tmp_path)

    findings = doctor.train_two_steps(patience=5 if "sleep" in code else 120)

    assert [finding.name for finding in findings] == ["train", "results"][: len(states)]
    assert [finding.state for finding in findings] == states
    assert detail in findings[-1].found
    command = "python -m domainbed.scripts.train --algorithm CARFT --data_dir embedded --dataset "
    assert (command in findings[-1].remedy) == (states[-1] == PROBLEM)


def test_a_checkout_without_train_is_not_tried_and_its_own_scripts_are_named(
    with_torch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "executable", with_torch)
    root = write_checkout(tmp_path / "host", "classic")
    scripts = root / "domainbed" / "scripts"
    (scripts / "train.py").rename(scripts / "trainv2.py")
    monkeypatch.chdir(root)
    findings = doctor.run_checks(names=["versions", "domainbed"])
    monkeypatch.setattr(doctor, "run_checks", lambda patience: findings)

    for flags, status, verdict in (
        ([], 0, "A training job may start, if this checkout's train works."),
        (["--train"], 1, "No training job was tried: see the arrow of train."),
    ):
        assert cli.main(["doctor", *flags]) == status
        printed = capsys.readouterr().out
        assert printed.startswith(f"ok       domainbed         foreign: {root}")
        assert "not tried: this checkout has no domainbed.scripts.train" in printed
        assert "by its own entry point, such as domainbed/scripts/trainv2.py" in printed
        assert verdict in printed


def test_all_missing_libraries_of_a_checkout_are_named_at_once(bare: Path, tmp_path: Path) -> None:
    train = "import h5py, json\nfrom ..lib import loader\n" + module_text("scripts/train")
    optional = "try:\n    import backpack\nexcept ImportError:\n    backpack = None\n"
    modules = {
        "datasets": "import wilds.datasets\n" + optional + module_text("datasets"),
        "scripts/train": train,
        "lib/loader": "from domainbed.lib import extra\nimport cv2\n",
        "lib/extra": "import own_module\n",
        "scripts/download": "import gdown\n",  # no job imports it
    }
    host = write_checkout(tmp_path / "host", modules=modules)
    write_files(host, {"own_module.py": ""})

    libraries = examine(bare, tmp_path, cwd=host)["libraries"]

    detail = "this checkout's training imports cv2, h5py, wilds, not installed"
    assert libraries == Finding(
        "libraries", PROBLEM, detail, "pip install opencv-python h5py wilds"
    )


WEIGHTS_MISSING = Finding("backbone ViT-B/16", NOTE, "")
TRAIN_NOT_TRIED = Finding("train", SKIPPED, "")


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ((), "A training job can start."),
        (
            (WEIGHTS_MISSING,),
            "A training job on EmojiStyles, or with tiny as clip_backbone, can start. Others need "
            "the weights of ViT-B/16, which are not here.",
        ),
        ((TRAIN_NOT_TRIED,), "A training job may start, if this checkout's train works."),
        (
            (WEIGHTS_MISSING, TRAIN_NOT_TRIED),
            "A training job on EmojiStyles, or with tiny as clip_backbone, may start, if this "
            "checkout's train works. Others need the weights of ViT-B/16, which are not here.",
        ),
        (
            (Finding("train", OK, ""), Finding("results", PROBLEM, "")),
            "A training job starts, but its results do not count: see the arrow.",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_was_checked(findings: Any, verdict: str) -> None:
    assert doctor_command.verdict(findings) == verdict


def test_a_step_is_trained_only_on_request_and_without_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    step = Finding("train", OK, "a step")
    monkeypatch.setattr(doctor, "train_two_steps", lambda patience: [step])

    def main(state: str, *flags: str) -> tuple[int, str]:
        findings = [TRAIN_NOT_TRIED, Finding("x", state, "detail")]
        monkeypatch.setattr(doctor, "run_checks", lambda patience: findings)
        status = cli.main(["doctor", *flags])
        return status, capsys.readouterr().out

    status, printed = main(NOTE, "--train")
    assert status == 0
    assert "a step" in printed and "can start." in printed

    status, printed = main(PROBLEM, "--train")
    assert status == 1
    assert "a step" not in printed and "cannot start" in printed
    assert "train not tried -> fix the problems above first" in " ".join(printed.split())

    status, printed = main(NOTE)
    assert status == 0
    assert "a step" not in printed and "may start" in printed


@pytest.mark.parametrize(("state", "status"), [(OK, 0), (NOTE, 0), (PROBLEM, 1)])
def test_the_exit_status_is_1_only_for_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, state: str, status: int
) -> None:
    finding = Finding("x", state, "found \x1b[31m", "do this")
    monkeypatch.setattr(doctor, "run_checks", lambda patience: [finding])

    assert cli.main(["doctor"]) == status

    text = capsys.readouterr().out
    assert ("A training job cannot start" if status else "A training job can start.") in text
    assert r"found \x1b[31m -> do this" in " ".join(text.split())


@pytest.mark.parametrize(("version", "notes"), [("2.9.1+cu128", ["torch"]), ("2.10.0", [])])
def test_a_torch_that_crafted_weights_may_harm_is_noted(
    monkeypatch: pytest.MonkeyPatch, version: str, notes: list[str]
) -> None:
    versions = {"torch": version}
    monkeypatch.setattr(doctor, "_installed_version", lambda name: versions.get(name, "1"))
    assert [f.name for f in doctor.check_versions() if f.state == NOTE] == notes


def test_the_harness_passes_all_checks(with_torch: str, tmp_path: Path) -> None:
    findings = examine(with_torch, tmp_path)

    assert {finding.state for finding in findings.values()} <= {OK, NOTE}
    assert findings.keys() >= doctor.CHECKS.keys() - {"backbones"}
    in_root = "; for a checkout run carft doctor in its root"
    assert findings["domainbed"].found == f"ours, the harness: {HARNESS}{in_root}"
    assert findings["algorithms"] == Finding("algorithms", OK, ", ".join(ALGORITHMS))
    assert "one CARFT step on " in findings["step"].found
    assert "train" not in findings

    weights = findings["backbone ViT-B/16"]
    path = tmp_path / "home" / ".cache" / "clip" / "ViT-B-16.pt"
    assert weights.state == NOTE
    assert weights.found.startswith(f"no {path};")
    assert "all data sets but EmojiStyles, " in weights.found
    assert "downloads it" in weights.remedy


def test_a_foreign_checkout_passes_and_damaged_weights_are_noted(
    with_torch: str, tmp_path: Path
) -> None:
    text = module_text("algorithms", "harness") + "class CLIPZeroShot(Algorithm):\n    pass\n"
    modules = {"algorithms": text, "__init__": ""}  # without the flag of our harness
    root = write_checkout(tmp_path / "host", "harness", modules=modules)
    write_files(tmp_path / "home" / ".cache" / "clip", {"RN50.pt": "half of it"})

    findings = examine(with_torch, tmp_path, cwd=root)

    assert findings["domainbed"].found.startswith("foreign: ")
    assert findings["step"].state == OK
    assert findings["train"].state == SKIPPED
    assert "carft doctor --train" in findings["train"].remedy

    algorithms = findings["algorithms"]
    assert algorithms.state == NOTE
    assert algorithms.found == "CLIPZeroShot: missing, or domainbed's own instead of ours"
    assert "rename its CLIPZeroShot" in algorithms.remedy
    assert "domainbed.algorithms has its own CLIPZeroShot" in findings["plugin"].found

    weights = findings["backbone RN50"]
    assert weights.state == NOTE, "a job needs these weights only if its user names them"
    assert openai.OPENAI_WEIGHTS["RN50"][1] in weights.found
    assert weights.remedy.startswith("rm ") and "RN50.pt" in weights.remedy


@pytest.mark.parametrize(
    ("dataset", "hparams", "message"),
    [
        ("Pets", "{}", "the weights of 'ViT-B/16' are not at "),
        ("Pets", '{"clip_backbone": "gone.pt"}', "clip_backbone is 'gone.pt', expected an exist"),
        ("DTD", '{"clip_backbone": "RN50"}', "the weights of 'RN50' are not at "),
    ],
)
def test_missing_weights_end_a_checkouts_job_in_one_line_before_data_is_read(
    tmp_path: Path, classic: Path, dataset: str, hparams: str, message: str
) -> None:
    home = tmp_path / "home"
    write_files(home, {".cache": "a file, so that nothing can be downloaded"})

    done = train(classic, home, "CARFT", "--dataset", dataset, "--hparams", hparams)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"domainbed-carft: {message}")


def test_the_hosts_own_algorithms_need_no_weights(tmp_path: Path, classic: Path) -> None:
    done = train(classic, tmp_path / "home", "ERM")
    assert "FileNotFoundError" in done.stderr
    assert "domainbed-carft: " not in done.stderr


def test_doctor_trains_two_steps_in_a_checkout(
    with_torch: str, monkeypatch: pytest.MonkeyPatch, classic: Path
) -> None:
    monkeypatch.setattr(sys, "executable", with_torch)
    monkeypatch.chdir(classic)
    (finding,) = doctor.train_two_steps(patience=300)
    assert finding.state == OK, finding
    assert "two steps of CARFT on EmojiStyles" in finding.found


@pytest.mark.slow
def test_the_command_trains_two_steps_in_a_checkout(tmp_path: Path, classic: Path) -> None:
    done = run_python(
        "-m",
        "domainbed_carft",
        "doctor",
        "--train",
        cwd=classic,
        path=[write_start_hook(tmp_path / "hook"), REPO],
        HOME=str(tmp_path / "home"),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       train             two steps of CARFT on EmojiStyles" in done.stdout
    assert "may start" not in done.stdout
    assert "as clip_backbone, can start." in done.stdout
