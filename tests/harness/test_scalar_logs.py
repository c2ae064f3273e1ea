"""`train --log`: what TensorBoard and W&B read is what results.jsonl has."""

from __future__ import annotations

import json
import math
import os

import pytest
from domainbed.lib import scalar_logs

from . import fakes, logged_runs
from .logged_runs import (
    NAME,
    STEPS,
    WITHOUT_WANDB,
    arguments,
    assert_on_tensorboard,
    assert_on_wandb,
    needs_wandb,
    on_tensorboard,
    recorded,
    run,
    run_id,
    sync,
)

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")

pytestmark = pytest.mark.usefixtures("registered", "quiet_wandb")


@pytest.fixture
def quiet_wandb(monkeypatch, tmp_path_factory):
    logged_runs.quiet_wandb(monkeypatch, tmp_path_factory.mktemp("home"))


@pytest.fixture
def server(monkeypatch):
    with logged_runs.serving(monkeypatch) as made:
        yield made


@needs_wandb
def test_the_scalars_of_the_records_and_nothing_in_the_current_folder(
    command, tmp_path, server, monkeypatch
):
    monkeypatch.setenv("WANDB_RUN_GROUP", "a sweep")
    folder = tmp_path / "a sweep" / "run"
    finished = command("train", *arguments(folder, "--workers", "2"))
    assert finished.returncode == 0, finished.stderr
    assert [step for step, _ in recorded(folder)] == STEPS
    assert_on_tensorboard(folder)
    assert os.listdir(tmp_path) == ["a sweep"] and os.listdir(tmp_path / "a sweep") == ["run"]
    assert server.runs == {}  # offline
    sync(folder)
    received = server.runs[run_id(folder)]
    assert_on_wandb(received, folder)
    assert (received.project, received.name, received.group) == ("domainbed", NAME, "a sweep")
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    assert received.config["args"] == last["args"] and received.config["hparams"] == last["hparams"]
    assert "log" not in last["args"]
    for line in (f"TensorBoard: tensorboard --logdir {folder}", f"Weights & Biases: {folder}"):
        assert line in finished.stdout


def test_hparams_compare_runs_on_tensorboard(tmp_path):
    assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.util import tensor_util

    (path,) = (tmp_path / "tensorboard" / NAME).iterdir()
    values = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    by_tag = {value.tag: value for value in values}
    content = by_tag["_hparams_/session_start_info"].metadata.plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["lr"].number_value == 1e-3
    assert session.hparams["algorithm"].string_value == "LinearSGD"
    assert session.hparams["test_envs"].string_value == "[0]"
    (text,) = tensor_util.make_ndarray(by_tag["args/text_summary"].tensor)
    assert json.loads(text)["checkpoint_freq"] == 2


def test_not_a_number_is_logged(tmp_path, monkeypatch):
    original = fakes.LinearSGD.update
    monkeypatch.setattr(
        fakes.LinearSGD, "update", lambda *args: {**original(*args), "loss": math.nan}
    )
    assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    points = on_tensorboard(tmp_path)["loss"]
    assert [step for step, _ in points] == STEPS and all(math.isnan(v) for _, v in points)


def test_logging_changes_no_record_and_no_draw(tmp_path):
    logged, plain = tmp_path / "logged", tmp_path / "plain"
    kinds = ("tensorboard",) if WITHOUT_WANDB else ("tensorboard", "wandb")
    assert run(arguments(logged, log=kinds)) == run(arguments(plain, log=())) == 0
    found = [recorded(folder) for folder in (logged, plain)]
    for records in found:
        for _, numbers in records:
            del numbers["step_time"]
    assert found[0] == found[1]
    assert not (plain / "tensorboard").exists() and not (plain / "wandb").exists()


def test_a_second_run_in_the_folder_is_logged_by_itself(tmp_path):
    """Records of two runs are in one file, as upstream has it; a log is one run's."""
    for _ in range(2):
        assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    assert [step for step, _ in recorded(tmp_path)] == [*STEPS, *STEPS]
    assert [step for step, _ in on_tensorboard(tmp_path)["loss"]] == STEPS


def test_names_of_runs_are_names_of_files():
    args = {"algorithm": "CARFT", "dataset": "/my data/pets & cars/", "test_envs": [0, 2]}
    args |= {"trial_seed": 1, "hparams_seed": 3}
    assert scalar_logs.name_of(args) == "CARFT_pets---cars_test0+2_trial1_hparams3"
    assert "_testnone_" in scalar_logs.name_of({**args, "test_envs": []})
