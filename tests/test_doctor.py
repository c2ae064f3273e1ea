"""`carft doctor`: in this process, and in interpreters without torch, which start at once."""

import importlib
import json
import os
import select
import shutil
import subprocess
import sys

import pytest
from fake_checkout import REPO, run_python, write_checkout, write_files, write_start_hook

from domainbed_carft import cli, doctor
from domainbed_carft.clips import openai
from domainbed_carft.doctor import NOTE, OK, PROBLEM, Finding


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Interpreter of an empty environment, without torch and start file."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


def worst_by_name(findings):
    """Map names to their worst finding."""
    findings = sorted(findings, key=lambda finding: (OK, NOTE, PROBLEM).index(finding.state))
    return {finding.name: finding for finding in findings}


def examine(python, cwd, path=(), **variables):
    """Return the findings of `carft doctor --json` in a bare interpreter."""
    words = ("-m", "domainbed_carft", "doctor", "--json")
    done = run_python(*words, python=python, path=[*path, REPO], cwd=cwd, **variables)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["ok"] is False  # there is no torch
    return worst_by_name(Finding(**fields) for fields in report["findings"])


def test_import_error_names_missing_module_and_importing_file(bare, tmp_path):
    host = write_checkout(tmp_path / "a user's host", modules={"datasets": "import wilds\n"})
    findings = examine(bare, host, [write_start_hook(tmp_path / "hook")])
    assert findings["domainbed"] == Finding("domainbed", OK, f"checkout: {host / 'domainbed'}")
    assert findings["hook"].state == OK
    algorithms = findings["algorithms"]
    message = f"ModuleNotFoundError: No module named 'wilds' ({host}/domainbed/datasets.py:1)"
    assert (algorithms.state, algorithms.detail) == (PROBLEM, message)
    assert "wilds" in algorithms.hint
    assert findings["device"].detail.startswith("ModuleNotFoundError: No module named 'torch' (")


def test_all_missing_modules_of_the_host_are_named_in_one_run(bare, tmp_path):
    modules = {
        "algorithms": "import os, timm_1\nfrom domainbed import networks\nfrom .lib import more\n",
        "networks": "import timm_1.models\ntry:\n    import optional_2\nexcept ImportError: 0\n",
        "lib/more": "from wilds_3.common import x\ndef f():\n    import late_4\nimport losses_5\n",
        "datasets": "from domainbed.lib.more import y\nimport gulp_6\n",
    }
    host = write_checkout(tmp_path / "host", modules=modules)
    write_files(host, {"extra/losses_5.py": ""})
    finding = examine(bare, host, [write_start_hook(tmp_path / "hook")])["algorithms"]
    assert finding.state == PROBLEM and "No module named 'timm_1'" in finding.detail
    first, second, _ = finding.hint.split("; ")
    assert first == "install the packages that provide the modules timm_1, gulp_6, wilds_3"
    assert second.startswith("losses_5 is a file of your checkout")


@pytest.mark.parametrize(
    ("variables", "detail", "hint"),
    [
        (
            {"DOMAINBED_CARFT_DISABLE": "yes"},
            "not active: DOMAINBED_CARFT_DISABLE is 'yes'",
            "unset DOMAINBED_CARFT_DISABLE",
        ),
        ({}, "pth is missing or damaged in {site_packages}", f"-m pip install {REPO}"),
    ],
)
def test_inactive_hook_is_problem(bare, tmp_path, variables, detail, hint):
    (site_packages,) = bare.parent.parent.glob("lib/python3*/site-packages")
    findings = examine(bare, tmp_path, **variables)
    assert findings["hook"].state == findings["domainbed"].state == PROBLEM
    assert detail.format(site_packages=site_packages) in findings["hook"].detail
    assert hint in findings["hook"].hint


@pytest.mark.parametrize(
    ("code", "state", "details"),
    [
        ("'--steps 2 ' in ' '.join(sys.argv) or sys.exit(9)", OK, ["two steps of CARFT"]),
        (
            "import json; json.loads('{')",
            PROBLEM,
            ["status 1:\n", '/domainbed/scripts/train.py", line 2', "JSONDecodeError: "],
        ),
    ],
)
def test_two_steps_report_output_of_host_train(tmp_path, monkeypatch, code, state, details):
    write_checkout(tmp_path, modules={"scripts/train": f"import sys\n{code}\n"})
    monkeypatch.chdir(tmp_path)
    (finding,) = doctor.train_two_steps()
    assert (finding.name, finding.state) == ("train", state)
    assert all(detail in finding.detail for detail in details), finding.detail
    command = "python -m domainbed.scripts.train --algorithm CARFT --data_dir embedded --dataset "
    assert (command in finding.hint) == (state == PROBLEM)


@pytest.mark.parametrize("missing", ["train.py", ""], ids=["script", "folder"])
@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["train_all.py"], "to find its flags, run python train_all.py --help"),
        (["train_all.py", "train_b.py"], "python train_all.py --help or python train_b.py --help"),
        ([], "take two steps of CORAL by your checkout's own training script"),
    ],
)
def test_checkout_with_another_entry_is_told_what_to_run(
    tmp_path, monkeypatch, entries, expected, missing
):
    scripts = write_checkout(tmp_path) / "domainbed" / "scripts"
    (scripts / "train.py").unlink()
    if not missing:
        shutil.rmtree(scripts)
    write_files(tmp_path, dict.fromkeys(entries, ""))
    monkeypatch.chdir(tmp_path)
    (finding,) = doctor.train_two_steps("CORAL")
    assert (finding.name, finding.state) == ("train", NOTE)
    assert finding.detail == "not tested: this domainbed has no scripts/train.py"
    assert expected in finding.hint


def test_host_that_fails_only_on_emoji_styles_can_train(tmp_path, monkeypatch):
    code = "import sys\n'Debug224' in sys.argv or sys.exit('no EmojiStyles here')\n"
    write_checkout(tmp_path, modules={"scripts/train": code})
    monkeypatch.chdir(tmp_path)
    passed, failed = doctor.train_two_steps()
    detail = "two steps of CARFT on Debug224 by domainbed's train"
    assert passed == Finding("train", OK, detail)
    assert (failed.name, failed.state) == ("train EmojiStyles", NOTE)
    assert failed.detail == "ended with status 1:\nno EmojiStyles here"
    assert "--dataset EmojiStyles " in failed.hint


def has_ended(pid, seconds=30):
    """Return True if a process ends in time; it takes a moment after the signal."""
    try:
        with open(os.pidfd_open(pid), "rb") as process:
            return bool(select.select([process], [], [], seconds)[0])
    except ProcessLookupError:
        return True


def test_two_steps_have_a_time_limit_also_for_their_child_processes(tmp_path, monkeypatch):
    code = """
import subprocess, time
print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
time.sleep(60)
"""
    write_checkout(tmp_path, modules={"scripts/train": code})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "TIME_LIMIT", 5)
    (finding,) = doctor.train_two_steps()
    assert (finding.name, finding.state) == ("train", PROBLEM)
    first, pid = finding.detail.splitlines()
    assert first == "stopped, because two steps of CARFT on EmojiStyles took longer than 5 seconds:"
    assert "python -m domainbed.scripts.train --algorithm CARFT" in finding.hint
    assert has_ended(int(pid))


@pytest.mark.parametrize(
    ("modules", "detail", "hint"),
    [
        (
            {"datasets": "import os\ndef f(:\n"},
            "SyntaxError: invalid syntax ({host}/domainbed/datasets.py:2)",
            "",
        ),
        (
            {"datasets": "import utils\n", "lib/utils": ""},
            "ModuleNotFoundError: No module named 'utils' ({host}/domainbed/datasets.py:1)",
            "utils is a file of your checkout, {host}/domainbed/lib/utils.py; add its folder to "
            "the search path: export PYTHONPATH={host}/domainbed/lib",
        ),
    ],
)
def test_mistake_in_a_checkout_is_located(bare, tmp_path, modules, detail, hint):
    host = write_checkout(tmp_path / "host", modules=modules)
    findings = examine(bare, host, [write_start_hook(tmp_path / "hook")])
    finding = findings["algorithms"]
    assert (finding.state, finding.detail) == (PROBLEM, detail.format(host=host))
    assert finding.hint == hint.format(host=host)


TRAINED = Finding("train", OK, "two steps")
EMOJI_FAILED = Finding("train EmojiStyles", NOTE, "ended with status 1")


@pytest.mark.parametrize(
    ("findings", "status", "conclusion"),
    [
        ([TRAINED], 0, "A training job can start."),
        ([TRAINED, EMOJI_FAILED], 0, "A training job can start."),
        (
            [Finding("train", NOTE, "not tested", "run it")],
            0,
            "No problem found, but no training step was tested, see the arrow.",
        ),
        (
            [Finding("train", PROBLEM, "status 1")],
            1,
            "No other problem found, but the two training steps failed, see the arrow.",
        ),
    ],
)
def test_conclusion_says_what_was_trained(monkeypatch, capsys, findings, status, conclusion):
    monkeypatch.setattr(doctor, "CHECKS", {})
    monkeypatch.setattr(doctor, "train_two_steps", lambda algorithm: findings)
    assert cli.main(["doctor", "--train"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == conclusion


@pytest.mark.parametrize(
    ("state", "flags", "status", "details"),
    [
        (NOTE, ["--train"], 0, ["a step", "can start.", "first line second \\x1b[31m -> do this"]),
        (NOTE, ["--train", "--algorithm", "CORAL"], 0, ["a step of CORAL", "can start."]),
        (PROBLEM, ["--train"], 1, ["cannot start: 1 problem, see the arrows"]),
        (OK, [], 0, ["test two training steps: carft doctor --train"]),
    ],
)
def test_doctor_trains_only_on_request_and_without_problems(
    monkeypatch, capsys, state, flags, status, details
):
    finding = Finding("x", state, "first line\nsecond \x1b[31m", "do this")
    monkeypatch.setattr(doctor, "CHECKS", {"x": lambda: [finding]})
    monkeypatch.setattr(
        doctor,
        "train_two_steps",
        lambda algorithm: [Finding("train", OK, f"a step of {algorithm}")],
    )
    assert cli.main(["doctor", *flags]) == status
    printed = " ".join(capsys.readouterr().out.split())
    assert all(detail in printed for detail in details)
    assert ("a step" in printed) == (state == NOTE)


@pytest.mark.parametrize(("version", "notes"), [("2.9.1+cu128", ["torch"]), ("2.10.0", [])])
def test_torch_before_2_10_is_noted(monkeypatch, version, notes):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    findings = doctor.check_versions()
    assert [finding.name for finding in findings if finding.state == NOTE] == notes


def test_harness_passes_all_checks_with_notes_on_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    weights = write_files(tmp_path / ".cache" / "clip", {"RN50.pt": "half of it"})
    findings = worst_by_name(doctor.diagnose())
    assert {finding.state for finding in findings.values()} <= {OK, NOTE}
    assert findings.keys() >= doctor.CHECKS.keys() - {"weights"}
    assert findings["domainbed"].detail.startswith("included harness: ")

    missing = findings["backbone ViT-B/16"]
    assert missing.state == NOTE and str(weights / "ViT-B-16.pt") in missing.detail
    damaged = findings["backbone RN50"]
    assert damaged.state == NOTE  # a job needs these weights only if its user names them
    assert openai.OPENAI_WEIGHTS["RN50"][1] in damaged.detail
    assert damaged.hint.startswith("rm ") and "RN50.pt" in damaged.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "hparams", "message"),
    [
        ("Pets", '{"clip_backbone": "gone.pt"}', "clip_backbone is 'gone.pt', expected an exist"),
        ("DTD", '{"clip_backbone": "RN50"}', "the weights of 'RN50' "),
    ],
)
def test_missing_weights_end_checkout_job_before_data_is_read(tmp_path, dataset, hparams, message):
    checkout = write_checkout(tmp_path / "host", "classic")
    home = write_files(tmp_path / "home", {".cache": "a file, so that nothing can be downloaded"})
    words = "-m domainbed.scripts.train --algorithm CARFT --data_dir nowhere --test_envs 0".split()
    words += ["--dataset", dataset, "--output_dir", "out", "--hparams", hparams]
    done = run_python(*words, cwd=checkout, HOME=str(home))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(f"domainbed-carft: {message}")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["CARFT", "Clones"])
def test_doctor_trains_two_steps_in_checkout(tmp_path, algorithm):
    checkout = write_checkout(tmp_path / "host", "classic")
    imports = "from domainbed_carft.method.baselines import CLIPFineTune\n"
    write_files(tmp_path, {"own.py": f"{imports}class CLIPMine(CLIPFineTune):\n    pass\n"})
    done = run_python(
        *("-m", "domainbed_carft", "doctor", "--train", "--algorithm", algorithm),
        cwd=checkout,
        HOME=str(tmp_path / "home"),
        DOMAINBED_CARFT_METHODS=str(tmp_path / "own.py"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok       train             two steps of {algorithm} on EmojiStyles" in done.stdout
    assert "ok       own methods       CLIPMine" in done.stdout
    assert done.stdout.startswith(f"ok       domainbed         checkout: {checkout}")
