"""A user's own folder domain/class/picture, from the command line to the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from domainbed import datasets
from domainbed.lib import own_data
from domainbed.lib.errors import UsageError
from domainbed.scripts import collect_results, sweep, train
from PIL import Image

pytestmark = pytest.mark.usefixtures("registered")

HPARAMS = json.dumps({"batch_size": 2})


def write(root: Path, domains=("city", "my village"), classes=("cat's", "dog"), pictures=5) -> Path:
    noise = np.random.RandomState(0)
    for domain in domains:
        for name in classes:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(pictures):
                pixels = noise.randint(0, 255, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def pets(tmp_path):
    return write(tmp_path / "own pets")


def run(output: Path, dataset: str, *more: str) -> list[dict]:
    arguments = ["--algorithm", "Still", "--dataset", dataset, "--output_dir", str(output)]
    fixed = ["--steps", "2", "--checkpoint_freq", "1", "--workers", "0", "--hparams", HPARAMS]
    assert train.main([*arguments, *fixed, *more]) == 0
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def test_a_path_is_a_data_set(pets, tmp_path):
    made = datasets.get_dataset_class(str(pets))
    assert made.ENVIRONMENTS == ["city", "my village"]
    assert issubclass(made, datasets.MultipleEnvironmentImageFolder)
    record = run(tmp_path / "job", str(pets), "--test_envs", "1")[-1]
    assert record["environments"] == ["city", "my village"]
    assert {"env0_in_acc", "env1_out_acc"} <= record.keys() and "env2_in_acc" not in record


def test_a_line_of_a_file_is_a_data_set(pets, tmp_path, monkeypatch):
    listing = tmp_path / "datasets.txt"
    listing.write_text("# mine\n\nPets = own pets\n")
    monkeypatch.setenv("DOMAINBED_DATASETS", str(listing))
    assert datasets.get_dataset_class("Pets").ENVIRONMENTS == ["city", "my village"]
    monkeypatch.delenv("DOMAINBED_DATASETS")
    with pytest.raises(NotImplementedError, match="Dataset not found: Pets"):
        datasets.get_dataset_class("Pets")
    monkeypatch.chdir(tmp_path)
    assert datasets.num_environments("Pets") == 2
    listing.write_text("Pets: own pets\n")
    monkeypatch.setenv("DOMAINBED_DATASETS", str(listing))
    with pytest.raises(
        UsageError, match=r"datasets\.txt, line 1: expected NAME = PATH, not: Pets:"
    ):
        datasets.get_dataset_class("Pets")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "__MACOSX").mkdir(), r"own pets holds __MACOSX, which would count"),
        (lambda root: (root / "city" / ".cache").mkdir(), r"city holds \.cache, which would count"),
        (lambda root: (root / "city" / "owl").mkdir(), r"'city' and 'my village'.*owl"),
        (lambda root: (root / "empty").mkdir(), r"empty has no sub-folders; expected one a class"),
    ],
)
def test_a_tree_that_is_not_in_order_is_refused_before_anything_is_made(
    pets, tmp_path, capsys, spoil, message
):
    spoil(pets)
    output = tmp_path / "sweep"
    fixed = ["--algorithms", "Still", "--datasets", str(pets), "--data_dir", ".", "--n_trials", "1"]
    launcher = ["--command_launcher", "local", "--skip_confirmation", "--single_test_envs"]
    assert sweep.main(["launch", *fixed, *launcher, "--output_dir", str(output)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not output.exists()


def test_spellings_of_a_path_are_one_data_set(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = ["--algorithms", "Still", "--data_dir", ".", "--n_trials", "1", "--n_hparams", "1"]
    launcher = ["--command_launcher", "dummy", "--skip_confirmation", "--single_test_envs"]
    commands = set()
    for spelling in ("own pets", "own pets/", "./own pets"):
        output = ["--output_dir", "sweep", "--datasets", spelling]
        assert sweep.main(["launch", *fixed, *launcher, *output]) == 0
        found = capsys.readouterr().out.splitlines()
        commands |= {line for line in found if line.startswith("Dummy launcher")}
        (tmp_path / "sweep").rename(tmp_path / f"sweep {len(list(tmp_path.iterdir()))}")
    assert len(commands) == 2  # one for each domain


def test_a_name_that_is_taken_or_means_something_in_python(pets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pets.rename(tmp_path / "names")
    assert datasets.get_dataset_class("names").ENVIRONMENTS == ["city", "my village"]
    (tmp_path / "datasets.txt").write_text("some notes of mine\nPACS = names\n")
    assert datasets.num_environments("./names") == 2
    with pytest.raises(UsageError, match="gives a folder for PACS, which is a data set of Domain"):
        datasets.get_dataset_class("PACS")


def test_no_such_folder_is_named(tmp_path, capsys):
    output = str(tmp_path / "out")
    missing = str(tmp_path / "nowhere")
    assert train.main(["--algorithm", "Still", "--dataset", missing, "--output_dir", output]) == 2
    assert f"There is no folder {missing}" in capsys.readouterr().err


def table(folder: Path, capsys) -> tuple[str, str]:
    capsys.readouterr()
    assert collect_results.main(["--input_dir", str(folder)]) == 0
    said = capsys.readouterr()
    return said.out, said.err


def test_the_table_has_the_domains_as_columns_wherever_the_folder_is(pets, tmp_path, capsys):
    results = tmp_path / "sweep"
    for test_env in (0, 1):
        run(results / f"job{test_env}", str(pets), "--test_envs", str(test_env))
    pets.rename(tmp_path / "moved")
    out, err = table(results, capsys)
    lines = out.splitlines()
    header = lines.index(
        f"-------- Dataset: {pets}, model selection method: training-domain validation set"
    )
    assert lines[header + 1].split() == ["Algorithm", "city", "my", "village", "Avg"]
    assert lines[header + 2].split()[0] == "Still" and "X" not in lines[header + 2]
    assert "no table" not in err


def test_one_domain_has_nothing_to_leave_out(tmp_path, capsys):
    alone = write(tmp_path / "alone", domains=("only",))
    refused = ["--algorithm", "Still", "--dataset", str(alone), "--output_dir", str(tmp_path / "x")]
    assert train.main(refused) == 2
    assert "leaves" in (message := capsys.readouterr().err) and "without a number" in message
    fixed = [
        "--algorithms",
        "Still",
        "--datasets",
        str(alone),
        "--data_dir",
        ".",
        "--n_trials",
        "2",
    ]
    launcher = ["--command_launcher", "dummy", "--skip_confirmation", "--n_hparams", "1"]
    assert sweep.main(["launch", *fixed, *launcher, "--output_dir", str(tmp_path / "sweep")]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if "--test_envs" in line]
    assert len(commands) == 2 and all("--test_envs  --" in command for command in commands)
    records = [
        run(
            tmp_path / "sweep" / f"job{trial}",
            str(alone),
            "--test_envs",
            "--trial_seed",
            str(trial),
        )
        for trial in (0, 1)
    ]
    out, _ = table(tmp_path / "sweep", capsys)
    lines = out.splitlines()
    header = lines.index(
        f"-------- Dataset: {alone}, nothing left out: out-split accuracy at the last step"
    )
    assert lines[header + 1].split() == ["Algorithm", "only", "Avg"]
    accuracies = [100 * job[-1]["env0_out_acc"] for job in records]
    assert lines[header + 2].split()[:2] == ["Still", f"{np.mean(accuracies):.1f}"]


def test_names_that_are_no_paths_stay_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert own_data.folder_of("PACS") is None
    write(tmp_path / "PACS")
    assert datasets.get_dataset_class("PACS").ENVIRONMENTS == ["A", "C", "P", "S"]
