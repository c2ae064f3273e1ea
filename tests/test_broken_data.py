"""Broken data: this package's algorithms refuse it, and other algorithms print one warning."""

import json

import pytest
from data_trees import even, grow, jpeg
from domainbed.scripts import train
from fake_checkout import module_text, run_python, write_checkout
from runs_jobs import records

ERM = "class ERM(Algorithm):\n"
METHODS = """
    def update(self, minibatches, unlabeled=None):
        return {"loss": 0.0}

    def predict(self, x):
        return x.flatten(1)[:, :2]
"""


@pytest.fixture
def broken_data(tmp_path):
    """Create broken data that can be trained on: its classes are splits."""
    return grow(tmp_path / "data" / "Pets", even(["test", "train"], "abc", 5), jpeg(size=(8, 8)))


def train_flags(algorithm, output, **hparams):
    flags = ["--algorithm", algorithm, "--steps", "1", "--test_envs", "0"]
    values = json.dumps({"batch_size": 2, **hparams})
    return [*flags, "--output_dir", str(output), "--hparams", values]


def test_broken_data_is_refused_unless_unverified(broken_data, tmp_path, capsys):
    flags = ["--dataset", str(broken_data), "--workers", "0"]
    hparams = {"clip_backbone": "tiny"}
    assert train.main([*train_flags("CLIPZeroShot", tmp_path / "job", **hparams), *flags]) == 2
    error = capsys.readouterr().err
    assert f"{broken_data} is broken: environment 'a' has the sub-splits 'test'" in error
    assert "data_edition to 'unverified'" in error

    hparams["data_edition"] = "unverified"
    assert train.main([*train_flags("CLIPZeroShot", tmp_path / "job", **hparams), *flags]) == 0
    assert records(tmp_path / "job")[0]["hparams"]["data_edition"] == "unverified"


@pytest.mark.slow
def test_broken_data_in_a_checkout_stops_carft_and_warns_erm_once(broken_data, tmp_path):
    text = module_text("algorithms", "classic").replace(f"{ERM}    pass\n", f"{ERM}{METHODS}")
    checkout = write_checkout(tmp_path / "a user's checkout", "classic", {"algorithms": text})

    def train_in_checkout(algorithm, **hparams):
        arguments = train_flags(algorithm, checkout / "job", **hparams)
        flags = ["--dataset", "Pets", "--data_dir", str(broken_data.parent)]
        return run_python("-m", "domainbed.scripts.train", *arguments, *flags, cwd=checkout)

    done = train_in_checkout("CARFT", clip_backbone="tiny")
    assert done.returncode == 1
    assert f"{broken_data} is broken: environment 'a' has the sub-splits 'test'" in done.stderr

    done = train_in_checkout("ERM")
    assert done.returncode == 0, done.stderr
    (warning,) = (line for line in done.stderr.splitlines() if "is broken" in line)
    assert warning.startswith("domainbed-carft: Warning: ")
    assert f"`carft data verify {broken_data}`" in warning
    assert "DOMAINBED_CARFT_DISABLE=1" in warning
