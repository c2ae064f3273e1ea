"""A user's own folder environment/class/image, from the command line to the table."""

import json
import re
from pathlib import Path

import pytest
from data_trees import even, grow, jpeg
from domainbed.scripts import collect_results, sweep, train

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")

HPARAMS = json.dumps({"batch_size": 2})


@pytest.fixture
def pets(tmp_path):
    """Write a folder of two environments with two classes."""
    return grow(tmp_path / "own pets", even(["cat's", "dog"], ["city", "my village"], 5), jpeg())


def run(output: Path, dataset: str, *flags: str) -> list[dict]:
    """Train Still for two steps on the dataset, and return the records."""
    arguments = ["--algorithm", "Still", "--dataset", dataset, "--output_dir", str(output)]
    fixed = ["--steps", "2", "--checkpoint_freq", "1", "--workers", "0", "--hparams", HPARAMS]
    assert train.main([*arguments, *fixed, *flags]) == 0
    return fakes.records(output)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_damaged_image_ends_the_job_with_its_path(pets, tmp_path, capsys, workers):
    damaged = pets / "my village" / "dog" / "3.jpg"
    content = damaged.read_bytes()
    damaged.write_text("not an image")
    arguments = ["--algorithm", "Still", "--dataset", str(pets), "--steps", "2"]
    arguments += ["--workers", workers, "--hparams", HPARAMS, "--output_dir", str(tmp_path / "job")]

    assert train.main(arguments) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert f"{damaged} cannot be read: cannot identify image" in message and "--decode" in message

    damaged.write_bytes(content)
    assert train.main(arguments) == 0


@pytest.mark.parametrize(
    ("change_tree", "message"),
    [
        (lambda root: (root / "__MACOSX").mkdir(), r"own pets contains __MACOSX, which would"),
        (lambda root: (root / "city" / ".cache").mkdir(), r"city contains \.cache, which would"),
        (lambda root: (root / "city" / "owl").mkdir(), r"'city' and 'my village'.*has 'owl'"),
        (lambda root: (root / "empty").mkdir(), r"empty has no sub-folders; expected a folder"),
    ],
)
def test_invalid_folder_tree_is_refused_before_launch(pets, tmp_path, capsys, change_tree, message):
    change_tree(pets)
    output = tmp_path / "sweep"
    arguments = ["launch", "--algorithms", "Still", "--datasets", str(pets), "--data_dir", "."]
    arguments += ["--n_trials", "1", "--single_test_envs", "--command_launcher", "local"]
    arguments += ["--skip_confirmation", "--output_dir", str(output)]

    assert sweep.main(arguments) == 2

    assert re.search(message, capsys.readouterr().err)
    assert not output.exists()


def test_tables_have_a_column_per_environment_of_a_moved_folder(pets, tmp_path, capsys):
    results = tmp_path / "sweep"
    for test_env in (0, 1):
        record = run(results / f"job{test_env}", str(pets), "--test_envs", str(test_env))[-1]
        assert record["environments"] == ["city", "my village"]
        assert {"env0_in_acc", "env1_out_acc"} <= record.keys() and "env2_in_acc" not in record
    pets.rename(tmp_path / "moved")
    capsys.readouterr()

    assert collect_results.main(["--input_dir", str(results)]) == 0

    lines = capsys.readouterr().out.splitlines()
    method = "model selection method: training-domain validation set"
    header = lines.index(f"-------- Dataset: {pets}, {method}")
    assert lines[header + 1].split() == ["Algorithm", "city", "my", "village", "Avg"]
    assert lines[header + 2].split()[0] == "Still" and "X" not in lines[header + 2]
