"""The commands as users start them, and jobs in processes of their own."""

import os
import random
import signal
import time

import pytest
from fake_checkout import run_python

from .fakes import start, status
from .test_resume import assert_same_outcome, carft


@pytest.mark.slow
def test_a_run_stopped_at_random_moments_resumes_to_the_same_weights(images, tmp_path):
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
    numbers += [signal.SIGKILL] * 3
    chance = random.Random(time.time_ns())
    undisturbed = tmp_path / "undisturbed"
    began = time.monotonic()
    assert status(start(carft(images, undisturbed))) == 0
    longest = time.monotonic() - began

    for number in chance.sample(numbers, len(numbers)):
        folder = tmp_path / "run"
        process = start(carft(images, folder))
        process.join(chance.uniform(0.0, longest))
        if process.is_alive():
            os.kill(process.pid, number)
        process.join()
        if (folder / "done").exists():
            if process.exitcode < 0:  # by a signal, maybe before it deleted its lock
                (folder / "lock").unlink(missing_ok=True)
            assert_same_outcome(folder, undisturbed)
            folder.rename(tmp_path / f"{len(os.listdir(tmp_path))} ended")

    assert status(start(carft(images, folder))) == 0
    assert_same_outcome(folder, undisturbed)


FORKSERVER = """
import multiprocessing, sys
multiprocessing.set_start_method("forkserver")
from domainbed.scripts import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_loaders_of_a_fork_server_train_the_same(images, tmp_path):
    # Python 3.14 starts them so by default.
    forkserver, fork = (
        carft(images, tmp_path / name, "--workers", "1") for name in ("forkserver", "fork")
    )
    done = run_python("-c", FORKSERVER, *forkserver, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert status(start(fork)) == 0
    assert_same_outcome(tmp_path / "forkserver", tmp_path / "fork")


def test_a_sweep_is_launched_and_collected(script, tmp_path):
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
