"""What README and docs/ tell users to type: the tutorial as a whole, then every other command.

The commands run in the tutorial's folder, where OUT is its sweep, JOB and JOB2 two of its jobs.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import doc_blocks
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TUTORIAL = ROOT / "docs" / "tutorial.md"
OWN_METHOD = ROOT / "docs" / "howto" / "own-method.md"
LONGEST = 900  # seconds for one block, on a busy machine
pytestmark = pytest.mark.slow

# Commands that no test here runs -> why. The first that matches holds.
NOT_RUN = {
    r"\bpip install\b": "asks a package index",
    r"^(source|make|wandb|git|tensorboard)\b": "changes the environment, needs an account, or serves",
    r"\.\.\.": "the reader fills in a part",
    r"torchrun|--gpus|--jobs_per_gpu|--processes": "needs several GPUs; tests/harness/test_processes.py",
    r"--launcher slurm": "needs a cluster; tests/test_slurm.py",
    r"wandb": "needs an account; tests of logs run it offline",
    r"--data_dir (DATA|\.)": "needs a benchmark's pictures or OpenAI's weights",
    r"--dataset path/to/root|--suite imagenet|--retained imagenet": "needs OpenAI's weights",
    r"open_clip:": "needs a checkpoint from the hub; tests/test_open_clip.py",
    r"benchmarks/|tools/pretrain": "takes minutes to hours; benchmarks/ are run by hand",
    r"--output_dir (peers-emoji|settle-emoji|amp-emoji)|contamination|\b(peers|settle|amp)-emoji\b": "takes hours",
    r"^carft demo|sweep launch demo|--suite EmojiShift|EmojiShift": "tests/test_demo.py and tests/test_suites_runs.py",
    r"^carft doctor": "tests/test_doctor.py",
    r"carft diff OUT": "tests/test_diff.py",
    r"weights\.pkl|names\.yaml|CARFT_IMAGENET": "the file is the reader's",
}


def on_a_busy_machine(command):
    """The command with more seconds until its Ctrl-C: jobs start later where others compute."""
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    return re.sub(
        r"(timeout --signal INT) (\d+)", lambda m: f"{m[1]} {round(int(m[2]) * busy)}", command
    )


def run_block(block, folder):
    """What a block printed; a file that its title names is written. Fails where a command fails."""
    if block.title:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if path.suffix == ".py" else "w", encoding="utf-8") as file:
            file.write(block.text)
        return ""

    program = ["bash", "-e", "-o", "pipefail"] if block.language == "bash" else [sys.executable]
    folder_of_programs = str(Path(sys.executable).parent)
    variables = {**os.environ, "PATH": f"{folder_of_programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*program, "-c", on_a_busy_machine(block.text)],
        cwd=folder,
        env={**variables, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert done.returncode == 0, f"line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the tutorial was followed, and what each of its blocks printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    printed = []
    for block in doc_blocks.blocks(TUTORIAL):
        if block.language == "text":
            printed[-1] = (*printed[-1][:2], block)
        else:
            printed.append((block, run_block(block, folder), None))
    return folder, printed


def test_the_tutorial_prints_what_it_shows(tutorial):
    _, printed = tutorial
    shown = [(block, output, expected) for block, output, expected in printed if expected]

    assert len(shown) > 9
    for block, output, expected in shown:
        assert doc_blocks.is_shown(output, expected.text), f"line {block.line}:\n{output}"
