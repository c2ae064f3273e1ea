"""`carft doctor`: in interpreters of its own, most of them without torch, which start at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_checkout import HOST, REPO, run_python, write_checkout, write_files, write_start_hook

from domainbed_carft import cli, doctor
from domainbed_carft.cli import doctor as command
from domainbed_carft.clips import backbone
from domainbed_carft.method import hparams

HARNESS = REPO / "third_party" / "domainbed"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing in it: no torch and no start file."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


def run(python: Any, folder: Path, *words: str, **options: Any) -> tuple[int, Any]:
    """Exit status and JSON of an interpreter with our hook, in an empty folder by default."""
    where = {"cwd": folder / "an empty folder", "path": [write_start_hook(folder / "hook"), REPO]}
    where["cwd"].mkdir(exist_ok=True)
    env = {"HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = run_python(*words, python=python, **{**where, **env, **options})
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def examine(python: Any, folder: Path, **options: Any) -> dict[str, tuple[str, str, str]]:
    """By name state, what was found and what to do of the worst finding of this name."""
    status, report = run(python, folder, "-m", "domainbed_carft", "doctor", "--json", **options)
    order = ("ok", "note", "problem")
    findings = sorted(report["findings"], key=lambda finding: order.index(finding["state"]))
    problem = findings[-1]["state"] == "problem"
    assert (status, report["ok"]) == (int(problem), not problem)
    return {f["name"]: (f["state"], f["found"], f["remedy"]) for f in findings}


def test_a_checkout_in_the_current_folder_or_on_the_path(bare: Path, tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "my checkout's root")
    path = [write_start_hook(tmp_path / "hook"), REPO, checkout]
    for options in ({"cwd": checkout}, {"path": path}):
        found = examine(bare, tmp_path, **options)
        assert found["domainbed"] == ("ok", f"foreign: {checkout / 'domainbed'}", "")


@pytest.mark.parametrize(
    ("name", "files", "found", "remedy"),
    [
        (
            "domainbed.datasets",
            {"datasets": f"import wilds\n{HOST['datasets.py']}"},
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
def test_a_host_that_fails(
    bare: Path, tmp_path: Path, name: str, files: Any, found: str, remedy: str
) -> None:
    examined = examine(bare, tmp_path, cwd=write_checkout(tmp_path / "host", **files))
    assert examined[name][0] == "problem" and examined["hook"][0] == "ok"
    assert found in examined[name][1] and remedy in examined[name][2]


def test_a_host_that_hangs(bare: Path, tmp_path: Path) -> None:
    host = write_checkout(tmp_path / "host", __init__="import time; time.sleep(120)\n")
    code = "import json; from domainbed_carft.cli.doctor import examine; "
    *_, last = run(bare, tmp_path, "-c", f"{code}print(json.dumps(examine(1.5)))", cwd=host)[1]
    assert last[:2] == ["domainbed", "problem"]
    assert "did not finish within 1.5 seconds and was stopped" in last[2]


def test_the_switch_is_set(bare: Path, tmp_path: Path) -> None:
    examined = examine(bare, tmp_path, DOMAINBED_CARFT_DISABLE="yes")
    expected = "not active: DOMAINBED_CARFT_DISABLE is 'yes'"
    assert examined["hook"] == ("problem", expected, "unset DOMAINBED_CARFT_DISABLE")
    assert examined["domainbed"][0] == "problem", "without the hook there is no harness"


def test_no_start_file(tmp_path: Path, bare: Path) -> None:
    state, found, remedy = examine(bare, tmp_path, path=[REPO])["hook"]
    (site_packages,) = bare.parent.parent.glob("lib/python3*/site-packages")
    assert state == "problem" and f"pth is missing or damaged in {site_packages}" in found
    assert f"-m pip install {REPO}" in remedy


def test_without_torch_every_problem_says_what_to_do(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "cache")
    examined = examine(bare, tmp_path, DOMAINBED_CARFT_CACHE=cache)
    found = "import of torch fails: No module named 'torch'"
    assert examined["imports torch"] == ("problem", found, "pip install torch")
    assert {f"imports {name}" for name in doctor.MODULES} <= examined.keys()
    assert examined["cache"][0] == "problem" and cache in examined["cache"][1]
    assert examined["step"] == ("note", "No module named 'torch'", "pip install torch")


# A train of a step on no data, as short as a checkout's can be; each line can be replaced.
STEP = [
    "import json, sys, pathlib",
    "folder = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1])",
    "folder.mkdir()",
    "record = {'step': 0, 'env0_in_acc': 0.5}",
    "(folder / 'results.jsonl').write_text(json.dumps(record))",
    "pass",
    "(folder / 'done').touch()",
]


@pytest.mark.parametrize(
    ("line", "code", "state", "found"),
    [
        (5, "pass", "ok", "one step of CARFT on EmojiStyles by its own command"),
        (5, "None.classifier", "problem", "exit status 1: AttributeError: 'NoneType' object has"),
        (6, "pass", "problem", "ended with status 0 but wrote no file 'done'"),
        (3, "record = {'step': 0, 'loss': 1}", "problem", "its records have no accuracies"),
        (1, "import time; time.sleep(300)", "problem", "did not finish a step within 5 seconds"),
    ],
)
def test_a_step_by_the_hosts_own_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, code: str, state: str, found: str
) -> None:
    lines = [code if number == line else text for number, text in enumerate(STEP)]
    write_checkout(tmp_path, **{"scripts/train": "\n".join(lines)})
    monkeypatch.chdir(tmp_path)
    finding = command.train(patience=5 if "sleep" in code else 120)
    assert (finding.name, finding.state) == ("train", state) and found in finding.found
    shown = "python -m domainbed.scripts.train --algorithm CARFT --data_dir embedded --dataset Emoj"
    assert (shown in finding.remedy) == (state == "problem")


def test_a_checkout_without_that_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_checkout(tmp_path) / "domainbed" / "scripts" / "train.py").unlink()
    monkeypatch.chdir(tmp_path)
    assert command.train()[:2] == ("train", "note")


WEIGHTS_MISSING = doctor.Finding("backbone ViT-B/16", "note", "", "")
TRAIN_NOT_TRIED = doctor.Finding("train", "note", "", "")


@pytest.mark.parametrize(
    ("findings", "told"),
    [
        ([], "A training job can start."),
        (
            [WEIGHTS_MISSING],
            "A training job on EmojiStyles, or with tiny as clip_backbone, can start. Others need "
            "the weights of ViT-B/16, which are not here.",
        ),
        ([TRAIN_NOT_TRIED], "A training job may start, if this checkout's train works."),
        (
            [WEIGHTS_MISSING, TRAIN_NOT_TRIED],
            "A training job on EmojiStyles, or with tiny as clip_backbone, may start, if this "
            "checkout's train works. Others need the weights of ViT-B/16, which are not here.",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_was_seen(findings: Any, told: str) -> None:
    assert command.verdict(findings) == told


def test_train_runs_only_if_asked_and_if_nothing_stops_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(command, "train", lambda: doctor.Finding("train", "ok", "a step"))
    for state, told in (("note", "can start."), ("problem", "cannot start")):
        findings = [TRAIN_NOT_TRIED, doctor.Finding("x", state, "found")]
        monkeypatch.setattr(command, "examine", lambda findings=findings: findings)
        assert cli.main(["doctor", "--train"]) == int(state == "problem")
        out = capsys.readouterr().out
        assert told in out and ("a step" in out) == (state == "note")
    assert cli.main(["doctor"]) == 1 and "a step" not in capsys.readouterr().out


def test_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for state, status in (("ok", 0), ("note", 0), ("problem", 1)):
        finding = doctor.Finding("x", state, "found \x1b[31m", "do this")
        monkeypatch.setattr(command, "examine", lambda finding=finding: [finding])
        assert cli.main(["doctor"]) == status
        verdict = "A training job cannot start" if status else "A training job can start."
        text = capsys.readouterr().out
        assert verdict in text and r"found \x1b[31m -> do this" in " ".join(text.split())


@pytest.mark.parametrize(("version", "told"), [("2.9.1+cu128", True), ("2.10.0", False)])
def test_a_torch_that_cannot_promise_all(
    monkeypatch: pytest.MonkeyPatch, version: str, told: bool
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "torch" else "1")
    notes = [finding.name for finding in doctor.versions() if finding.state == "note"]
    assert notes == ["torch"] * told


def test_the_harness_can_start_with_torch(tmp_path: Path) -> None:
    examined = examine(sys.executable, tmp_path)
    assert {state for state, _, _ in examined.values()} <= {"ok", "note"}
    assert examined.keys() >= {check.__name__ for check in doctor.CHECKS} - {"backbones"}
    assert examined["domainbed"][1].startswith(f"ours, the harness: {HARNESS}")
    assert examined["algorithms"] == ("ok", ", ".join(hparams.ALGORITHMS), "")
    assert "one CARFT step on " in examined["step"][1]
    state, found, remedy = examined["backbone ViT-B/16"]
    path = tmp_path / "home" / ".cache" / "clip" / "ViT-B-16.pt"
    assert (state, found.split(";")[0]) == ("note", f"no {path}") and "downloads it" in remedy
    assert "all data sets but EmojiStyles, " in found and "train" not in examined


def test_a_complete_foreign_checkout_and_damaged_weights(tmp_path: Path) -> None:
    root = tmp_path / "host"
    shutil.copytree(HARNESS, root / "domainbed", ignore=shutil.ignore_patterns("__pycache__"))
    with (root / "domainbed" / "algorithms.py").open("a") as file:
        file.write("class CLIPZeroShot(Algorithm):\n    pass\n")
    write_files(tmp_path / "home" / ".cache" / "clip", {"RN50.pt": "half of it"})
    examined = examine(sys.executable, tmp_path, cwd=root)
    assert examined["domainbed"][1].startswith("foreign: ") and examined["step"][0] == "ok"
    assert examined["train"][0] == "note" and "carft doctor --train" in examined["train"][2]
    state, found, remedy = examined["algorithms"]
    assert (state, found) == ("note", "CLIPZeroShot: missing, or domainbed's own instead of ours")
    assert "rename its CLIPZeroShot" in remedy
    assert "domainbed.algorithms has its own CLIPZeroShot" in examined["plugin"][1]
    state, found, remedy = examined["backbone RN50"]
    # a note: no job needs it unless asked to
    assert state == "note" and backbone.OPENAI_WEIGHTS["RN50"][1] in found
    assert remedy.startswith("rm ") and "RN50.pt" in remedy


CLASSIC = REPO / "tests" / "checkouts" / "classic"
NO_DATA = "--data_dir nowhere --dataset Pets --test_envs 0 --output_dir out"


@pytest.mark.parametrize(
    ("dataset", "hparams", "told"),
    [
        ("Pets", "{}", "the weights of 'ViT-B/16' are not at "),
        ("Pets", '{"clip_backbone": "gone.pt"}', "clip_backbone is 'gone.pt', expected an exist"),
        ("DTD", '{"clip_backbone": "RN50"}', "the weights of 'RN50' are not at "),
    ],
)
def test_missing_weights_end_a_checkouts_job_in_one_line_before_data_is_read(
    tmp_path: Path, dataset: str, hparams: str, told: str
) -> None:
    root = tmp_path / "host"
    shutil.copytree(CLASSIC, root)
    write_files(tmp_path / "home", {".cache": "a file, so that nothing can be downloaded"})
    words = ["-m", "domainbed.scripts.train", "--algorithm", "CARFT", *NO_DATA.split()]
    path = [write_start_hook(tmp_path / "hook"), REPO]
    home = str(tmp_path / "home")
    words += ["--dataset", dataset, "--hparams", hparams]
    done = run_python(*words, cwd=root, path=path, HOME=home)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"domainbed-carft: {told}")


def test_the_hosts_own_algorithms_need_no_weights(tmp_path: Path) -> None:
    root = tmp_path / "host"
    shutil.copytree(CLASSIC, root)
    words = ["-m", "domainbed.scripts.train", "--algorithm", "ERM", *NO_DATA.split()]
    path = [write_start_hook(tmp_path / "hook"), REPO]
    done = run_python(*words, cwd=root, path=path, HOME=str(tmp_path / "home"))
    assert "FileNotFoundError" in done.stderr and "domainbed-carft: " not in done.stderr


def test_one_step_in_a_checkout_by_doctor(tmp_path: Path) -> None:
    root = tmp_path / "host"
    shutil.copytree(CLASSIC, root)
    path = [write_start_hook(tmp_path / "hook"), REPO]
    home = str(tmp_path / "home")
    words = ["-m", "domainbed_carft", "doctor", "--train"]
    done = run_python(*words, cwd=root, path=path, HOME=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       train             one step of CARFT on EmojiStyles" in done.stdout
    assert "may start" not in done.stdout and "as clip_backbone, can start." in done.stdout
