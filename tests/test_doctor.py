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
    run_python,
    run_python_with_torch,
    write_checkout,
    write_files,
    write_start_hook,
)

from domainbed_carft import cli, doctor
from domainbed_carft.clips import openai
from domainbed_carft.doctor import NOTE, OK, PROBLEM, Finding

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

    return done.returncode, json.loads(done.stdout)


def examine(python: Any, folder: Path, **options: Any) -> dict[str, Finding]:
    """The worst finding of each name, by `carft doctor --json`."""
    arguments = ("-m", "domainbed_carft", "doctor", "--json")
    status, report = json_of(python, folder, *arguments, **options)
    findings = [Finding(**fields) for fields in report["findings"]]
    assert findings[0].name == "domainbed", "the first says which one was looked at"
    findings.sort(key=lambda finding: (OK, NOTE, PROBLEM).index(finding.state))

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


def test_a_host_that_fails_to_import_is_a_problem_with_its_file(bare: Path, tmp_path: Path) -> None:
    host = write_checkout(tmp_path / "host", modules={"datasets": "import wilds\n"})

    findings = examine(bare, tmp_path, cwd=host)

    assert findings["hook"].state == OK
    found = f"ModuleNotFoundError: No module named 'wilds' ({host}/domainbed/datasets.py:1)"
    remedy = "install what provides the module wilds"
    assert findings["algorithms"] == Finding("algorithms", PROBLEM, found, remedy)


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


def test_without_torch_the_missing_packages_are_named(bare: Path, tmp_path: Path) -> None:
    findings = examine(bare, tmp_path)

    for name in ("algorithms", "device"):
        assert findings[name].found.startswith("ModuleNotFoundError: No module named 'torch' (")
    assert findings["versions"].state == PROBLEM
    assert findings["versions"].remedy == f"pip install {' '.join(doctor.REQUIRED)}"


# A train of two steps on no data; what it does can be replaced.
@pytest.mark.parametrize(
    ("code", "state", "details"),
    [
        ("'--steps 2 ' in ' '.join(sys.argv) or sys.exit(9)", OK, ["two steps of CARFT"]),
        (
            "import json; json.loads('{')",
            PROBLEM,
            ["status 1:\n", '/domainbed/scripts/train.py", line 2', "JSONDecodeError: "],
        ),
        (
            "import argparse; argparse.ArgumentParser().parse_args()",
            PROBLEM,
            ["status 2:\n", "error: unrecognized arguments: --algorithm CARFT"],
        ),
    ],
)
def test_doctor_shows_what_the_hosts_train_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, state: str, details: list[str]
) -> None:
    write_checkout(tmp_path, modules={"scripts/train": f"import sys\n{code}\n"})
    monkeypatch.chdir(tmp_path)

    finding = doctor.train_two_steps()

    assert (finding.name, finding.state) == ("train", state)
    assert all(detail in finding.found for detail in details), finding.found
    command = "python -m domainbed.scripts.train --algorithm CARFT --data_dir embedded --dataset "
    assert (command in finding.remedy) == (state == PROBLEM)


def test_a_step_is_trained_only_on_request_and_without_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    step = Finding("train", OK, "a step")
    monkeypatch.setattr(doctor, "train_two_steps", lambda: step)

    def main(state: str, *flags: str) -> tuple[int, str]:
        finding = Finding("x", state, "first line\nsecond \x1b[31m", "do this")
        monkeypatch.setattr(doctor, "CHECKS", {"x": lambda: [finding]})
        status = cli.main(["doctor", *flags])
        return status, capsys.readouterr().out

    status, printed = main(NOTE, "--train")
    assert status == 0
    assert "a step" in printed and "can start." in printed
    assert "first line second \\x1b[31m -> do this" in " ".join(printed.split())

    status, printed = main(PROBLEM, "--train")
    assert status == 1
    assert "a step" not in printed and "cannot start: 1 problem, see the arrows" in printed

    status, printed = main(OK)
    assert status == 0
    assert "a step" not in printed and "carft doctor --train takes two steps" in printed


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
    assert findings.keys() >= doctor.CHECKS.keys() - {"weights"}
    in_root = "; for a checkout run carft doctor in its root"
    assert findings["domainbed"].found == f"ours, the harness: {HARNESS}{in_root}"

    weights = findings["backbone ViT-B/16"]
    path = tmp_path / "home" / ".cache" / "clip" / "ViT-B-16.pt"
    assert weights.state == NOTE
    assert weights.found.startswith(f"no {path};")
    assert "all data sets but EmojiStyles, " in weights.found
    assert "downloads it" in weights.remedy


def test_a_foreign_checkout_passes_and_damaged_weights_are_noted(
    with_torch: str, classic: Path, tmp_path: Path
) -> None:
    write_files(tmp_path / "home" / ".cache" / "clip", {"RN50.pt": "half of it"})
    own = "from domainbed_carft.method.baselines import CLIPFineTune\n"
    write_files(tmp_path, {"own.py": f"{own}class CLIPMine(CLIPFineTune):\n    pass\n"})
    own_methods = str(tmp_path / "own.py")

    findings = examine(with_torch, tmp_path, cwd=classic, DOMAINBED_CARFT_METHODS=own_methods)

    assert {finding.state for finding in findings.values()} <= {OK, NOTE}
    assert findings["own methods"] == Finding("own methods", OK, "CLIPMine")
    assert findings["domainbed"] == Finding("domainbed", OK, f"foreign: {classic / 'domainbed'}")
    weights = findings["backbone RN50"]
    assert weights.state == NOTE, "a job needs these weights only if its user names them"
    assert openai.OPENAI_WEIGHTS["RN50"][1] in weights.found
    assert weights.remedy.startswith("rm ") and "RN50.pt" in weights.remedy


def test_a_host_whose_carft_is_another_class_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from domainbed import algorithms

    other = type("CARFT", (), {"__module__": "domainbed.algorithms"})
    monkeypatch.setattr(algorithms, "get_algorithm_class", lambda name: other)
    problem = [*doctor.check_algorithms()][-1]
    assert (problem.name, problem.state) == ("algorithms", PROBLEM)
    assert problem.found == "CARFT is the class of domainbed.algorithms, not ours"


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
    finding = doctor.train_two_steps()
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
    assert done.stdout.startswith(f"ok       domainbed         foreign: {classic}")
    assert done.stdout.endswith("\nA training job can start.\n")
