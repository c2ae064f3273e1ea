"""A disk that is full: a tmpfs of its own, in a namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PLUGIN

# What runs inside the namespace: the folder to mount at, the mount options, then a program.
MOUNTED = 'mount -t tmpfs -o "$2" tmpfs "$1" || exit 99; shift 2; exec "$@"'


def mounted(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with a tmpfs of 1 MiB on `folder`, which only this process sees."""
    folder.mkdir(exist_ok=True)
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    path = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [*unshare, "sh", "-c", MOUNTED, "sh", str(folder), "size=1m"]
    command += [sys.executable, "-c", code, str(folder)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("there is no unshare here, so no file system that is small")
    if done.returncode == 99 or done.stderr.startswith("unshare"):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return done


FULL = """
import io, json, os, pathlib, sys, contextlib
import torch
from domainbed.scripts import train
folder = pathlib.Path(sys.argv[1])
run = folder / "run"
arguments = "--algorithm LinearSGD --dataset Debug28 --workers 0 --checkpoint_freq 1".split()
arguments += ["--output_dir", str(run), "--hparams", '{"batch_size": 4}']
def train_steps(count):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = train.main([*arguments, "--steps", str(count)])
    return status, said.getvalue()
from domainbed import algorithms
update, calls = algorithms.LinearSGD.update, []
def filling(self, *args):
    calls.append(1)
    if len(calls) == 3:
        with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    return update(self, *args)
algorithms.LinearSGD.update = filling
full = train_steps(6)
algorithms.LinearSGD.update = update
state = torch.load(run / "state.pt", weights_only=True)
files = sorted(path.name for path in run.iterdir())
still_full = train_steps(6)
(folder / "filler").unlink()
room = train_steps(6)
lines = (run / "results.jsonl").read_text().splitlines()
steps = [json.loads(line)["step"] for line in lines]
left = sorted(path.name for path in run.iterdir())
print(json.dumps([full, state["steps_done"], files, still_full, room, steps, left]))
"""


def test_a_full_disk_is_told_and_the_state_before_is_intact(tmp_path):
    done = mounted(tmp_path / "small", FULL)
    assert done.returncode == 0, done.stderr
    full, saved, files, still_full, room, steps, left = json.loads(done.stdout)
    for status, said in (full, still_full):
        assert status == 1
        assert "state.pt cannot be written: " in said and " 0 MiB are free; " in said
        assert "earlier saves are untouched: free disk space, then rerun the command" in said
        assert "Traceback" not in said
    assert saved == 2
    assert (
        "state.pt" in files and "done" not in files and not any(".part" in name for name in files)
    )
    assert room[0] == 0 and steps == [0, 1, 2, 3, 4, 5]
    assert left == ["done", "err.txt", "model.pkl", "model_best.pkl", "out.txt", "results.jsonl"]
