"""Commands in processes of their own, as users start them."""

import json

import pytest
from domainbed.scripts import train
from fake_checkout import run_python

from .fakes import assert_same_outcome

FORKSERVER = """
import multiprocessing, sys
multiprocessing.set_start_method("forkserver")
from domainbed.scripts import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_loaders_started_by_a_fork_server_give_the_same_results(images, tmp_path):
    # The default way to start them in Python 3.14.
    hparams = json.dumps({"batch_size": 2, "clip_backbone": "tiny"})
    arguments = ["--algorithm", "CLIPLinearProbe", "--dataset", str(images), "--hparams", hparams]
    arguments += ["--steps", "4", "--checkpoint_freq", "2", "--workers", "1"]
    forkserver, fork = (str(tmp_path / name) for name in ("forkserver", "fork"))
    done = run_python("-c", FORKSERVER, *arguments, "--output_dir", forkserver, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert train.main([*arguments, "--output_dir", fork]) == 0
    assert_same_outcome(tmp_path / "forkserver", tmp_path / "fork")


def test_sweep_is_launched_and_collected(script, tmp_path):
    folder = tmp_path / "a sweep"
    arguments = [
        *("--algorithms", "ERM", "--datasets", "Debug28", "--single_test_envs", "--n_trials", 1),
        *("--n_hparams", 1, "--steps", 2, "--hparams", '{"batch_size": 8}', "--data_dir", "unused"),
        *("--skip_confirmation", "--output_dir", folder, "--command_launcher", "local"),
    ]
    assert script("sweep", "launch", *arguments).returncode == 0
    table = script("collect_results", "--input_dir", folder)
    assert table.returncode == 0
    assert table.stdout.startswith("Total records: 6\n\n-------- Dataset: Debug28, model select")
    assert (folder / "results.txt").read_text() == table.stdout
