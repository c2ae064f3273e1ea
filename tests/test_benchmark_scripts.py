"""Each script in benchmarks/ runs with its smallest input, or reports a missing checkout."""

import shutil
import subprocess
import sys

import pytest
from fake_checkout import REPO, write_checkout

pytestmark = pytest.mark.slow
BENCHMARKS = REPO / "benchmarks"

# The smallest input of each script that needs no checkout; the folder {new} does not exist.
COMMANDS = {
    "bf16_kl.py": "--seeds 1",
    "collect.py": "{new} --jobs 24 --rounds 2",
    "contamination.py": "{records}/contamination",
    "evaluation.py": "--images 64 --rounds 2 --workers 0",
    "hook_cost.py": "--runs 2",
    "hostile.py": "--minutes 0.01",
    "large_tree.py": "--folder {new} --scale 0.002 --steps 2 --workers 0 --distinct 10",
    "images.py": f"--upstream {REPO / 'third_party'} --rounds 2",  # any harness will do
    "step_cost.py": "--shape tiny --rounds 2",
    "sweep_evaluation.py": "--rounds 1 --trials 1 --images 4",
}
# The exit status is 1 if a time misses its goal, for example on a busy machine.
CAN_MISS_A_GOAL = {"hook_cost.py", "sweep_evaluation.py"}
NEED_A_CHECKOUT = (
    "checkout_methods.py {new}",
    "head_penalties.py {new}",
    "parity.py --upstream {new}",
    "upstream_tests.py --upstream {new}",
    "whole_sweep.py --upstream {new}",
)


@pytest.mark.parametrize("script", COMMANDS)
def test_script_runs_with_its_smallest_input(script, tmp_path):
    records = BENCHMARKS / "records" / "contamination.tar.xz"
    shutil.unpack_archive(records, tmp_path, filter="data")
    words = COMMANDS[script].format(new=tmp_path / "new", records=tmp_path).split()
    command = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    statuses = (0, 1) if script in CAN_MISS_A_GOAL else (0,)
    assert done.returncode in statuses, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and done.stdout.strip()


@pytest.mark.parametrize("command", NEED_A_CHECKOUT)
def test_script_reports_a_missing_checkout(command, tmp_path):
    script, *words = command.format(new=tmp_path / "new").split()
    command = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and str(tmp_path / "new") in done.stderr


MORE_ALGORITHMS = """
ALGORITHMS += ["Grey", "Broken"]

class Grey(ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__((1, *input_shape[1:]), num_classes, num_domains, hparams)

class Broken(ERM):
    def update(self, minibatches, unlabeled=None):
        raise ValueError("no CUDA")
"""


def test_algorithms_of_a_checkout_work_are_refused_or_fail(tmp_path):
    root = write_checkout(tmp_path / "a user's checkout", "classic")
    with (root / "domainbed" / "algorithms.py").open("a") as file:
        file.write(MORE_ALGORITHMS)
    script = str(BENCHMARKS / "checkout_methods.py")
    command = [sys.executable, script, str(root), "--host"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    lines = done.stdout.splitlines()
    rows = {tuple(line.split()[:2]): line.split(maxsplit=3)[2:] for line in lines[:-2]}
    for head in ("random", "zero-shot"):
        outcome, detail = rows["ERM", head]
        name, first, second = detail.split()
        assert (outcome, name) == ("works", "loss") and float(second) < float(first)
        assert rows["Grey", head][0] == "refused" and "images in RGB" in rows["Grey", head][1]
        assert rows["Broken", head] == ["fails", "ValueError: no CUDA"]
    assert lines[-2].startswith("random: 6 algorithms, 4 works, 1 refused, 1 fails")
