"""`carft sweep launch --log`: the jobs are told, and they are the same jobs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import warm
from fake_checkout import write_checkout

from domainbed_carft import cli, launchers
from domainbed_carft.sweep import logs

FLAGS = ["--algorithms", "ERM", "--datasets", "Debug28", "--n_trials", "1", "--n_hparams", "1"]
FLAGS += ["--single_test_envs", "--data_dir", "/data", "--steps", "3"]
FLAGS += ["--hparams", '{"batch_size": 4}']

TWO_JOBS = """
name: two
datasets: [Debug28]
algorithms: [ERM]
trials: 1
steps: 3
hparams: {batch_size: 4}
test_environments: ["0", "2"]
"""

VARIANTS = """
name: two
datasets: [EmojiStyles]
algorithms: [CARFT]
trials: 1
test_environments: [line]
grid: {kl_weight: [0, 1]}
"""


@pytest.fixture(autouse=True)
def unasked(monkeypatch):
    for name in ("DOMAINBED_LOG", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """The jobs, each with its variables, that are handed to a launcher, which does nothing."""
    monkeypatch.setattr(logs, "problems", lambda kinds: [])

    def launch(*flags):
        seen = []

        def see(jobs, environment):
            seen.extend((job, environment(job)) for job in jobs)

        monkeypatch.setattr(launchers, "make", lambda *args: see)
        place = ["--output_dir", str(tmp_path / "my sweep")]
        assert cli.main(["sweep", "launch", *flags, *place, "--yes"]) == 1  # none is done
        return seen

    return launch


def test_the_jobs_are_told_and_are_the_same_jobs(launched):
    plain = launched(*FLAGS)
    told = launched(*FLAGS, "--log", "tensorboard", "wandb", "--keep_weights", "none",
                    "--skip_training_in_splits")  # fmt: skip
    variables = {"DOMAINBED_LOG": "tensorboard wandb", "WANDB_RUN_GROUP": "my sweep"}
    variables |= {"DOMAINBED_KEEP_WEIGHTS": "none", "DOMAINBED_SKIP_TRAINING_IN_SPLITS": "1"}
    assert len(plain) == 3 and all(given == {} for _, given in plain)
    assert all(given == variables for _, given in told)
    assert [job for job, _ in told] == [job for job, _ in plain]
    told = launched(*FLAGS, "--log", "tensorboard")
    assert told[0][1] == {"DOMAINBED_LOG": "tensorboard"}


def test_a_group_of_the_users_own_stays(launched, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    told = launched(*FLAGS, "--log", "wandb")
    assert told[0][1] == {"DOMAINBED_LOG": "wandb"}


def test_each_variant_is_a_group(launched, tmp_path):
    (tmp_path / "mine.yaml").write_text(VARIANTS)
    told = launched(str(tmp_path / "mine.yaml"), "--log", "wandb")
    groups = [given["WANDB_RUN_GROUP"] for _, given in told]
    assert groups == ["my sweep/kl_weight=0", "my sweep/kl_weight=1"]


def test_a_missing_library_is_told_before_any_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    place = ["--output_dir", str(tmp_path / "out"), "--jobs_per_gpu", "-1"]
    assert cli.main(["sweep", "launch", *FLAGS, *place, "--log", "tensorboard"]) == 1
    said = capsys.readouterr().err
    assert "2 problems, nothing was done" in said
    assert "--log tensorboard needs tensorboard" in said and "pip install tensorboard" in said
    assert not (tmp_path / "out").exists()


def test_under_a_checkout_that_cannot_log_it_is_refused(tmp_path):
    root = tmp_path / "a checkout"
    write_checkout(root)
    place = ["--output_dir", "out", "--data_dir", "data"]
    words = ["--algorithms", "ERM", "--datasets", "PACS", "--launcher", "dummy", *place]
    command = [sys.executable, "-m", "domainbed_carft", "sweep", "launch", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*command, "--log", "tensorboard"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"--log: the jobs would run the train of {root / 'domainbed'}, which" in done.stderr
    assert not (root / "out").exists()


def test_tensorboard_shows_the_jobs_of_a_sweep_by_name(tmp_path):
    """All of it is real: the pool, the jobs, their files, and what TensorBoard finds there."""
    reason = "tensorboard is not installed"
    multiplexers = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_multiplexer", reason=reason
    )
    out = tmp_path / "out"
    (tmp_path / "mine.yaml").write_text(TWO_JOBS)
    command = ["-m", "domainbed_carft", "sweep", "launch", "mine.yaml", "--output_dir", out]
    command += ["--data_dir", "D", "--log", "tensorboard", "--jobs", "2"]
    done = warm.run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["mine.yaml", "out"]
    shown = multiplexers.EventMultiplexer().AddRunsFromDirectory(str(out)).Reload()
    found = {}
    for run in shown.Runs():
        folder, _, name = run.partition("/tensorboard/")
        found[name] = folder
        records = map(json.loads, (out / folder / "results.jsonl").open())
        expected = [(record["step"], np.float32(record["env1_in_acc"])) for record in records]
        points = [
            (event.step, event.tensor_proto.float_val[0])
            for event in shown.Tensors(run, "env1_in_acc")
        ]
        assert points == expected
    assert sorted(found) == [f"ERM_Debug28_test{i}_trial0_hparams0" for i in (0, 2)]
