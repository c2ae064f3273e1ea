"""`carft sweep launch --log`: the jobs are told, and they are the same jobs."""

import sys

import pytest

from domainbed_carft import cli, launchers

FLAGS = ["--algorithms", "ERM", "--datasets", "Debug28", "--n_trials", "1", "--n_hparams", "1"]
FLAGS += ["--single_test_envs", "--data_dir", "/data", "--steps", "3"]
FLAGS += ["--hparams", '{"batch_size": 4}']

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
    """The lines of jobs and their variables that a launcher gets, which does nothing."""
    monkeypatch.setattr("domainbed.lib.scalar_logs.problems", lambda kinds: [])

    def launch(*flags):
        seen = []

        def launcher(jobs, environment):
            seen.extend((job.line, environment(job)) for job in jobs)

        monkeypatch.setattr(launchers, "make", lambda *args: launcher)
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
    assert [line for line, _ in told] == [line for line, _ in plain]
    told = launched(*FLAGS, "--log", "tensorboard")
    assert told[0][1] == {"DOMAINBED_LOG": "tensorboard"}


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
    assert (
        "--log tensorboard needs tensorboard" in said
        and "pip install 'domainbed-carft[log]'" in said
    )
    assert not (tmp_path / "out").exists()
