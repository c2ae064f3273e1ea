"""`carft doctor`: in interpreters of its own, most of them without torch, which start at once."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_checkout import (
    HOST,
    OURS,
    REPO,
    run_python,
    write_checkout,
    write_files,
    write_start_hook,
)

from domainbed_carft import cli, doctor
from domainbed_carft.doctor import host, judge
from domainbed_carft.doctor.findings import SECTIONS
from domainbed_carft.method import backbone

HARNESS = REPO / "third_party" / "domainbed"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with nothing in it: no torch and no start file."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


class Examined:
    """What `carft doctor --json` printed, and its exit status."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.stderr == ""
        self.status = done.returncode
        self.report = json.loads(done.stdout)

    def __getitem__(self, section: str) -> Any:
        return self.report[section]

    def finding(self, name: str) -> tuple[str, str, str]:
        """State, what was found and what to do of the first finding of this name."""
        return next(_parts(f) for f in self.report["findings"] if f["name"] == name)

    def failure(self, words: str) -> tuple[str, str, str]:
        """The same of the one finding with these words in what was found."""
        (one,) = (_parts(f) for f in self.report["findings"] if words in f["found"])
        return one


def _parts(finding: dict[str, str]) -> tuple[str, str, str]:
    return finding["state"], finding["found"], finding["remedy"]


class Doctor:
    """Runs `carft doctor` by one interpreter, in an empty folder unless another is given."""

    def __init__(self, folder: Path, python: str | Path, hooked: bool = True) -> None:
        self.python = python
        self.path = [write_start_hook(folder / "hook"), REPO] if hooked else [REPO]
        self.empty = folder / "an empty folder"
        self.empty.mkdir()
        self.home = folder / "home"

    def run(
        self, *arguments: str, cwd: Path | None = None, path: tuple[Path, ...] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        return run_python(
            *arguments,
            cwd=cwd or self.empty,
            path=[*self.path, *path],
            python=self.python,
            **{"HOME": str(self.home), "OMP_NUM_THREADS": "1", **env},
        )

    def examine(self, **options: Any) -> Examined:
        return Examined(self.run("-m", "domainbed_carft", "doctor", "--json", **options))


@pytest.fixture
def quick(tmp_path: Path, bare: Path) -> Doctor:
    return Doctor(tmp_path, bare)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path / "my checkout's root")


# Which domainbed


def test_a_checkout_in_the_current_folder(quick: Doctor, checkout: Path) -> None:
    examined = quick.examine(cwd=checkout)
    assert examined["domainbed"]["path"] == str(checkout / "domainbed")
    assert examined["domainbed"]["ours"] is False
    state, found, _ = examined.finding("domainbed")
    assert (state, found) == ("ok", f"foreign: {checkout / 'domainbed'}")


def test_a_checkout_on_the_path(quick: Doctor, checkout: Path) -> None:
    assert quick.examine(path=(checkout,))["domainbed"]["path"] == str(checkout / "domainbed")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is new in Python 3.11")
def test_a_current_folder_that_python_does_not_look_into(quick: Doctor, checkout: Path) -> None:
    examined = quick.examine(cwd=checkout, PYTHONSAFEPATH="1")
    assert examined["domainbed"]["path"] == str(HARNESS)
    state, found, remedy = examined.finding("domainbed")
    assert state == "note" and str(checkout / "domainbed") in found
    assert "unset PYTHONSAFEPATH" in remedy


def test_a_bare_folder_that_shadows_all(quick: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "domainbed"
    folder.mkdir(parents=True)
    examined = quick.examine(cwd=tmp_path / "work")
    state, _, remedy = examined.failure(f"Python took {folder} for the package")
    assert state == "problem" and "rename it or start from" in remedy


def test_a_checkout_without_init_that_trains_by_its_own_script(
    quick: Doctor, checkout: Path
) -> None:
    (checkout / "domainbed" / "__init__.py").unlink()
    shutil.rmtree(checkout / "domainbed" / "scripts")
    write_files(checkout, {"train_all.py": ""})
    examined = quick.examine(cwd=checkout)
    assert (examined["domainbed"]["ours"], examined["domainbed"]["train"]) == (False, False)
    state, found, remedy = examined.finding("domainbed")
    assert state == "note" and "no domainbed.scripts.train" in found
    assert str(checkout / "train_all.py") in remedy


def test_a_package_that_the_host_misses(quick: Doctor, tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "host", datasets=f"import wilds\n{HOST['datasets.py']}")
    write_files(root / "domainbed", {"requirements.txt": "wilds==1.2.2\n"})
    examined = quick.examine(cwd=root)
    state, found, remedy = examined.failure("wilds")
    assert found == "import of domainbed.datasets fails: No module named 'wilds'"
    assert remedy.startswith("pip install wilds (")
    assert str(root / "domainbed" / "requirements.txt") in remedy
    assert (state, examined.status) == ("problem", 1)


def test_a_host_with_a_syntax_error(quick: Doctor, tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "host", __init__="def broken(:\n")
    examined = quick.examine(cwd=root)
    state, found, remedy = examined.failure("SyntaxError")
    assert state == "problem" and "import of domainbed fails" in found and "__init__.py" in found
    assert "python -c 'import domainbed'" in remedy
    assert examined["domainbed"]["path"] == str(root / "domainbed")


def test_a_host_that_kills_the_interpreter(quick: Doctor, tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    examined = quick.examine(cwd=write_checkout(tmp_path / "host", algorithms=code))
    state, found, remedy = examined.finding("domainbed")
    assert state == "problem" and "ended by SIGKILL" in found and "faulthandler" in remedy
    assert examined["hook"]["active"] and examined["step"] is None
    assert examined.status == 1


def test_a_host_that_hangs(quick: Doctor, tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "host", algorithms="import time; time.sleep(120)\n")
    code = "from domainbed_carft import doctor; print(doctor.examine(1.5).as_json())"
    examined = Examined(quick.run("-c", code, cwd=root))
    problem = examined["findings"][-1]
    assert problem["state"] == "problem"
    assert "not through after 1.5 seconds and was stopped" in problem["found"]


def test_the_command_python_of_a_sweep(quick: Doctor, checkout: Path) -> None:
    examined = quick.examine(cwd=checkout, PATH="")
    state, found, remedy = examined.finding("python")
    assert state == "note" and "'python', which here is nothing" in found
    assert f"source {Path(quick.python).with_name('activate')}" in remedy
    examined = quick.examine(cwd=checkout, PATH=str(Path(quick.python).parent))
    assert examined.finding("python")[0] == "ok"


# The hook


def test_the_hook_is_active(quick: Doctor) -> None:
    examined = quick.examine()
    assert examined["hook"]["active"] and examined.finding("hook")[0] == "ok"


def test_the_switch_is_set(quick: Doctor) -> None:
    examined = quick.examine(DOMAINBED_CARFT_DISABLE="yes")
    assert examined.finding("hook") == (
        "problem",
        "not active: DOMAINBED_CARFT_DISABLE is 'yes'",
        "unset DOMAINBED_CARFT_DISABLE",
    )
    assert examined.finding("domainbed")[0] == "problem", "without the hook there is no harness"
    assert examined["hook"]["switch"] == "yes" and examined.status == 1


def test_no_start_file(tmp_path: Path, bare: Path) -> None:
    examined = Doctor(tmp_path, bare, hooked=False).examine()
    state, found, remedy = examined.finding("hook")
    (site_packages,) = bare.parent.parent.glob("lib/python3*/site-packages")
    assert state == "problem" and f"used from {REPO / 'domainbed_carft'}" in found
    assert str(site_packages) in found and "domainbed_carft.pth is missing" in found
    assert f"-m pip install {REPO}" in remedy
    assert examined.status == 1


# Everything else


def test_without_torch_every_problem_says_what_to_do(quick: Doctor) -> None:
    examined = quick.examine()
    state, found, remedy = examined.finding("imports torch")
    assert (state, found) == ("problem", "import of torch fails: No module named 'torch'")
    assert remedy.startswith("pip install ") and "torch" in remedy
    assert examined["versions"]["torch"] is None and examined["backbones"]["missing"] == "torch"
    done = quick.run("-m", "domainbed_carft", "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    text = " ".join(done.stdout.split())
    problems = [f for f in examined["findings"] if f["state"] == "problem"]
    for problem in problems:
        assert f"{problem['found']} -> {problem['remedy']}" in text
    assert text.endswith(
        f"cannot start: {len(problems)} problems, each with what to do after the arrow."
    )


def test_another_package_called_clip(quick: Doctor, tmp_path: Path) -> None:
    other = write_files(tmp_path / "other", {"clip.py": "def copy(text): pass\n"})
    state, found, remedy = quick.examine(path=(other,)).finding("imports clip-anytorch")
    assert state == "problem" and f"(found: {other / 'clip.py'})" in found
    assert f"{other / 'clip.py'} is another package" in remedy
    assert "pip install --force-reinstall" in remedy and "clip-anytorch" in remedy


def test_clip_without_the_package_it_imports(quick: Doctor, tmp_path: Path) -> None:
    files = {"clip/__init__.py": "import pkg_resources\n", "clip/model.py": ""}
    examined = quick.examine(path=(write_files(tmp_path / "other", files),))
    assert examined.finding("imports clip-anytorch")[2] == "pip install 'setuptools<82'"


def test_a_cache_that_cannot_be_written(quick: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    examined = quick.examine(DOMAINBED_CARFT_CACHE=str(tmp_path / "file" / "cache"))
    state, found, remedy = examined.finding("cache")
    assert state == "problem" and str(tmp_path / "file" / "cache") in found
    assert "set DOMAINBED_CARFT_CACHE" in remedy
    assert quick.examine(DOMAINBED_CARFT_CACHE=str(tmp_path / "c")).finding("cache")[0] == "ok"


def test_an_interpreter_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    report = doctor.examine()
    assert not report.ok
    assert "could not be started" in report.as_text() and "/no/such/python" in report.as_text()


def test_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for state, status in (("ok", 0), ("note", 0), ("problem", 1)):
        report = doctor.Report([doctor.Finding("x", state, "found", "do this")], {})
        monkeypatch.setattr(doctor, "examine", lambda report=report: report)
        assert cli.main(["doctor"]) == status
        verdict = "A training job can start." if status == 0 else "A training job cannot start"
        assert verdict in capsys.readouterr().out
        assert cli.main(["doctor", "--json"]) == status
        assert json.loads(capsys.readouterr().out).keys() == {"ok", "findings", *SECTIONS}


# With torch and nothing faked


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Doctor:
    return Doctor(tmp_path_factory.mktemp("real"), sys.executable)


@pytest.fixture(scope="module")
def harness(real: Doctor) -> Examined:
    return real.examine()


def test_the_harness_can_start(harness: Examined) -> None:
    assert [f for f in harness["findings"] if f["state"] == "problem"] == []
    assert harness.status == 0 and harness["ok"] is True
    assert all(harness[section] for section in SECTIONS)
    assert harness["domainbed"]["path"] == str(HARNESS) and harness["domainbed"]["ours"]
    assert harness["algorithms"] == dict.fromkeys(OURS, "domainbed_carft.method.algorithms")
    assert math.isfinite(harness["step"]["loss"]) and harness["step"]["seconds"] > 0
    assert harness["versions"]["torch"] and harness["device"]["cores"] >= 1


def test_the_backbones(real: Doctor, harness: Examined) -> None:
    assert harness.finding("backbone tiny")[0] == "ok"
    assert harness["backbones"][0]["digest"] == backbone.TINY_SHA256
    assert {b["name"] for b in harness["backbones"]} == {"tiny", *backbone.OPENAI_WEIGHTS}
    file_name, sha = backbone.OPENAI_WEIGHTS["ViT-B/16"]
    state, found, remedy = harness.finding("backbone ViT-B/16")
    assert state == "note" and str(real.home / ".cache" / "clip" / file_name) in found
    assert file_name in remedy and sha in remedy


@pytest.mark.parametrize(
    ("section", "fact", "name", "words"),
    [
        ("step", {"error": "RuntimeError: planted", "missing": None}, "step", "planted"),
        ("algorithms", {"CARFT": "domainbed.algorithms"}, "algorithms", "CARFT will be"),
        ("algorithms", {"CARFT": None}, "algorithms", "CARFT unknown"),
    ],
)
def test_what_else_keeps_a_job_from_starting(
    harness: Examined, section: str, fact: dict[str, Any], name: str, words: str
) -> None:
    findings = judge.diagnose({**harness.report, section: fact}, "")
    (problem,) = (f for f in findings if f.state == "problem")
    assert problem.name == name and words in problem.found and problem.remedy


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"gpus": [{"name": "A100", "memory": 80e9, "bf16": True}]}, "ok", "A100, 80 GB, bf16 nat"),
        ({"torch_cuda": "12.8"}, "note", "sees no GPU"),
        ({"torch_cuda": None, "nvidia_driver": True}, "note", "without CUDA"),
    ],
)
def test_devices(harness: Examined, changes: dict[str, Any], state: str, words: str) -> None:
    nothing = {"gpus": [], "torch_cuda": None, "nvidia_driver": False}
    device = {**harness["device"], **nothing, **changes}
    (found,) = (
        f for f in judge.diagnose({**harness.report, "device": device}, "") if f.name == "device"
    )
    assert found.state == state and words in found.found and bool(found.remedy) == (state == "note")


@pytest.mark.parametrize(
    ("version", "noted"), [("2.9.1+cu126", True), ("2.10.0", False), ("3.0", False), (None, False)]
)
def test_a_torch_that_is_unsafe_for_strangers_files(
    harness: Examined, version: str | None, noted: bool
) -> None:
    facts = {**harness.report, "versions": {**harness["versions"], "torch": version}}
    found = [f for f in judge.diagnose(facts, "") if f.name == "torch"]
    assert bool(found) == noted
    assert all(f.state == "note" and "stranger's file" in f.found and f.remedy for f in found)


def test_facts_that_the_doctor_does_not_understand(harness: Examined) -> None:
    findings = judge.diagnose({**harness.report, "device": {"gpus": None}}, "")
    (problem,) = (f for f in findings if f.state == "problem")
    assert problem.name == "device" and "report it" in problem.remedy
    assert findings[-1].name == "step"


def foreign_harness(folder: Path) -> Path:
    """A complete checkout of somebody else's, which is a copy of our harness."""
    shutil.copytree(HARNESS, folder / "domainbed", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_complete_foreign_checkout_and_damaged_weights(real: Doctor, tmp_path: Path) -> None:
    root = foreign_harness(tmp_path / "host")
    with (root / "domainbed" / "algorithms.py").open("a") as file:
        file.write("class CLIPZeroShot(Algorithm):\n    pass\n")
    write_files(tmp_path / "home" / ".cache" / "clip", {"RN50.pt": "half of it"})
    examined = real.examine(cwd=root, HOME=str(tmp_path / "home"))
    assert examined["domainbed"]["ours"] is False
    assert examined.finding("step")[0] == "ok"
    state, found, remedy = examined.finding("algorithms")
    assert state == "note" and found.startswith("CLIPZeroShot will be domainbed's own, not ours.")
    assert "could not extend domainbed.algorithms (CarftError: it has its own CLIPZ" in found
    assert "rename CLIPZeroShot" in remedy
    state, found, remedy = examined.finding("backbone RN50")
    # a note: no job needs it unless asked to
    assert state == "note" and backbone.OPENAI_WEIGHTS["RN50"][1] in found
    assert remedy.startswith("rm ") and "RN50.pt" in remedy
    assert examined.status == 0


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit(quick: Doctor, checkout: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
        done = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit() -> list[str | bool | None]:
        facts = host._git(str(checkout / "domainbed"))
        return [facts.get("commit"), facts.get("modified")]

    assert commit() == [None, None]
    git("init", "--quiet")
    assert commit() == [None, None], "an environment inside another project has not its commit"
    git("add", "domainbed/datasets.py")
    git("commit", "--quiet", "-m", "x", "--no-gpg-sign")
    (checkout / "domainbed" / "datasets.py").write_text("changed")
    assert commit() == [git("rev-parse", "--short", "HEAD"), True]
    git("checkout", "--quiet", ".")
    assert commit()[1] is False
    found = quick.examine(cwd=checkout).finding("domainbed")[1]
    assert found.endswith(f"domainbed, commit {git('rev-parse', '--short', 'HEAD')}")
