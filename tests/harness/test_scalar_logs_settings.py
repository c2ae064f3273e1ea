"""How logs are asked for, and what is refused before anything is trained."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
import warm
from domainbed import command_launchers
from domainbed.lib import optional_library, scalar_logs, tensorboard_log
from domainbed.scripts import sweep, train

from . import logged_runs, wandb_server
from .conftest import PLUGIN
from .logged_runs import arguments, assert_on_tensorboard, needs_wandb, run

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")

pytestmark = pytest.mark.usefixtures("registered", "quiet_wandb")


@pytest.fixture
def quiet_wandb(monkeypatch, tmp_path_factory):
    logged_runs.quiet_wandb(monkeypatch, tmp_path_factory.mktemp("home"))


def test_neither_library_is_loaded_unless_asked_for(tmp_path):
    code = (
        "import sys; from domainbed.scripts import train, sweep; train.main(sys.argv[1:]); "
        "print({'tensorboard', 'wandb'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    done = warm.run("-c", code, *arguments(tmp_path, log=()), env=env)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_a_missing_library_is_told_with_all_else_before_anything_is_loaded(
    tmp_path, capsys, monkeypatch
):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train.main(arguments(tmp_path, "--steps", "-1")) == 2
    said = capsys.readouterr().err
    assert "3 problems, nothing was run" in said and "--steps must be at least 0" in said
    assert "--log tensorboard needs tensorboard, which cannot be loaded" in said
    assert "pip install wandb, or pip install 'domainbed-carft[log]'" in said


def test_a_folder_called_as_a_library_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "some_library").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = optional_library.problems("some_library", "--log")
    assert "(it is not installed)" in problem


def test_the_variable_asks_for_all_jobs_and_the_flag_wins(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DOMAINBED_LOG", "tensorboard")
    assert run(arguments(tmp_path / "by variable", log=())) == 0
    assert_on_tensorboard(tmp_path / "by variable")
    assert run([*arguments(tmp_path / "by flag", log=()), "--log"]) == 0
    assert not (tmp_path / "by flag" / "tensorboard").exists()
    monkeypatch.setenv("DOMAINBED_LOG", "tensorboard,wandb")
    assert train.main(arguments(tmp_path / "wrong", log=())) == 2
    said = capsys.readouterr().err
    assert "DOMAINBED_LOG has 'tensorboard,wandb', expected names out of tensorboard, wandb" in said


@needs_wandb
def test_without_a_login_a_job_is_refused_and_asks_nobody(tmp_path, monkeypatch):
    """On a terminal, where W&B would ask."""
    monkeypatch.delenv("WANDB_MODE")
    inner, outer = pty.openpty()
    words = [sys.executable, "-m", "domainbed.scripts.train", *arguments(tmp_path)]
    words[words.index("LinearSGD")] = "ERM"
    process = subprocess.Popen(words, stdin=outer, stdout=outer, stderr=outer)
    try:
        assert process.wait(timeout=60) == 2
    finally:
        process.kill()
        os.close(outer)
    said = os.read(inner, 2**16).decode()
    os.close(inner)
    assert "1 problem, nothing was run" in said and "No API key configured" in said
    assert "`wandb login` first" in said and "WANDB_MODE=offline logs into" in said
    assert "Traceback" not in said and not (tmp_path / "results.jsonl").exists()


@needs_wandb
@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "ofline"), ("WANDB_API_KEY", "short")])
def test_wrong_settings_of_wandb_are_refused(tmp_path, monkeypatch, name, value):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv(name, value)
    assert run(arguments(tmp_path)) == 2
    said = (tmp_path / "err.txt").read_text()
    assert "--log wandb: " in said and name in said
    assert "Traceback" not in said
    if name == "WANDB_MODE":
        assert "WANDB_MODE is 'ofline'. " in said and "'online', 'offline'" in said
        assert "wandb login" not in said and "pydantic" not in said


@needs_wandb
@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_told_before_training(tmp_path, monkeypatch):
    """With a status after which launchers try again: the arguments are right."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    assert run(arguments(tmp_path)) == 1
    said = (tmp_path / "err.txt").read_text()
    assert "train: Weights & Biases cannot be begun: " in said and "Traceback" not in said
    assert not (tmp_path / "results.jsonl").exists()


def test_a_log_that_cannot_be_begun_is_told_before_training(tmp_path):
    (tmp_path / "tensorboard").write_text("a file in the way")
    assert run(arguments(tmp_path, log=("tensorboard",))) == 1
    said = (tmp_path / "err.txt").read_text()
    assert said.startswith("train: TensorBoard cannot be begun: ") and "Traceback" not in said
    assert str(tmp_path / "tensorboard") in said and not (tmp_path / "results.jsonl").exists()


def test_forgetting_where_nothing_was_logged(tmp_path):
    scalar_logs.forget(str(tmp_path))
    tensorboard_log.forget(str(tmp_path / "not there"))
    assert os.listdir(tmp_path) == []


def test_a_sweep_hands_it_on_to_its_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DOMAINBED_LOG", "")
    monkeypatch.setenv("WANDB_RUN_GROUP", "")
    monkeypatch.delenv("WANDB_RUN_GROUP")
    seen = []
    monkeypatch.setitem(
        command_launchers.REGISTRY,
        "dummy",
        lambda commands: seen.append((os.environ["DOMAINBED_LOG"], commands)),
    )
    words = ["launch", "--algorithms", "Still", "--datasets", "Debug28", "--n_hparams", "1"]
    words += ["--data_dir", "D", "--command_launcher", "dummy", "--skip_confirmation"]
    for flags in (["--log", "tensorboard"], []):
        folder = str(tmp_path / f"out{len(flags)}")
        assert sweep.main([*words, "--output_dir", folder, *flags]) == 0
        monkeypatch.setenv("DOMAINBED_LOG", "")
    (log, told), (nothing, plain) = seen
    assert (log, nothing) == ("tensorboard", "")
    assert [one.replace("out2", "out0") for one in told] == plain  # no part of what jobs are
    scalar_logs.hand_on(["wandb"], str(tmp_path / "my sweep") + "/")
    assert os.environ["WANDB_RUN_GROUP"] == "my sweep"
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert sweep.main([*words, "--output_dir", str(tmp_path / "no"), "--log", "tensorboard"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err and not (tmp_path / "no").exists()
