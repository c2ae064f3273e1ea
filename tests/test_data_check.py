"""Broken data: our algorithms refuse it, everybody else's job gets one warning."""

from __future__ import annotations

import json
import os

import pytest
import warm
from data_trees import even, grow, jpeg
from fake_checkout import REPO, module_text, run_python_with_torch, write_checkout

FAKES = REPO / "tests" / "harness" / "plugin"  # an algorithm that needs no weights
CLIP = '{"batch_size": 2, "clip_backbone": "tiny"}'

STILL = """
    def update(self, minibatches, unlabeled=None):
        return {"loss": 0.0}

    def predict(self, x):
        return x.flatten(1)[:, :2]
"""


@pytest.fixture(params=["harness", "checkout"])
def host(request, tmp_path):
    """The folder to start in, the data set, its flags, and an algorithm that is not ours.

    The data is broken, though it can be trained on: its classes are splits.
    """
    root = tmp_path / "data" / "Pets"
    grow(root, even(["test", "train"], "abc", 5), jpeg(size=(8, 8)))
    if request.param == "harness":
        return tmp_path, root, ["--dataset", str(root)], "Still"
    erm = "class ERM(Algorithm):\n"
    text = module_text("algorithms", "classic").replace(f"{erm}    pass\n", f"{erm}{STILL}")
    checkout = write_checkout(
        tmp_path / "a user's checkout", "classic", modules={"algorithms": text}
    )
    return checkout, root, ["--dataset", "Pets", "--data_dir", str(root.parent)], "ERM"


def train(host, algorithm, hparams='{"batch_size": 2}'):
    folder, _, flags, _ = host
    arguments = ["--algorithm", algorithm, "--steps", "1", "--test_envs", "0", "--hparams", hparams]
    command = ["-m", "domainbed.scripts.train", *arguments, *flags]
    command += ["--output_dir", str(folder / "job")]
    if folder.name == "a user's checkout":
        return run_python_with_torch(*command, cwd=folder)
    return warm.run(*command, cwd=folder, env={**os.environ, "PYTHONPATH": str(FAKES)})


COUNTED_JOB = """
import collections, os, sys
root, *arguments = sys.argv[1:]
counts = collections.Counter()

def count(event, arguments):
    if event in ("os.scandir", "os.listdir"):
        folder = os.fspath(arguments[0])
        if folder.startswith(root):
            counts[os.path.relpath(folder, root)] += 1

sys.addaudithook(count)
from domainbed.scripts import train
assert train.main(arguments) == 0
print({folder: n for folder, n in counts.items() if os.sep in folder})
"""


def test_a_job_lists_each_class_folder_once(tmp_path):
    root = grow(tmp_path / "pets", even(["cat", "dog"], "abc", 5), jpeg(size=(8, 8)))
    arguments = ["--algorithm", "CARFT", "--dataset", str(root), "--hparams", CLIP]
    arguments += ["--steps", "1", "--test_envs", "0", "--output_dir", str(tmp_path / "job")]

    done = warm.run("-c", COUNTED_JOB, str(root), *arguments)

    assert done.returncode == 0, done.stderr
    folders = [f"{environment}/{name}" for environment in "abc" for name in ("cat", "dog")]
    assert done.stdout.splitlines()[-1] == str(dict.fromkeys(folders, 1))


def test_our_algorithms_refuse_broken_data_unless_unchecked(host):
    done = train(host, "CARFT", CLIP)
    assert done.returncode in (1, 2)  # a host of somebody else's ends as it does
    assert f"{host[1]} is broken: environment 'a' has the sub-splits 'test'" in done.stderr
    assert "set the hparam data_edition to 'unchecked'" in done.stderr
    assert not (host[0] / "job" / "results.jsonl").exists()
    done = train(host, "CARFT", CLIP.replace("}", ', "data_edition": "unchecked"}'))
    assert done.returncode == 0, done.stderr
    record = json.loads((host[0] / "job" / "results.jsonl").read_text().splitlines()[0])
    assert record["hparams"]["data_edition"] == "unchecked"


def test_other_algorithms_train_on_broken_data_with_one_warning(host):
    done = train(host, host[3])
    assert done.returncode == 0, done.stderr
    (warning,) = (line for line in done.stderr.splitlines() if "is broken" in line)
    assert warning.startswith("domainbed-carft: Warning: the data of ")
    assert "environment 'a' has the sub-splits 'test', 'train', expected class folders" in warning
    assert f"For details run `carft data verify {host[1]}`" in warning
    assert "DOMAINBED_CARFT_DISABLE=1 disables this check" in warning
