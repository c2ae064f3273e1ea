"""All five benchmarks from their folders to the table, on small trees with their real names.

Every tree has the environments and the class folders of the published set and a few small
images, some of which have odd names.
"""

import json
import math

import pytest
from data_trees import even, grow, jpeg
from domainbed.scripts import collect_results, train

from domainbed_carft.data import benchmarks


def add_odd_names(folder):
    """What is harmless in a class folder; returns how many images were added."""
    names = ('say "cheese".png', " two  spaces .JPEG", "ö {} $HOME %s.jpg", "-rf.jpg")
    for name in names:
        (folder / name).write_bytes(jpeg())
    (folder / "link.jpg").symlink_to(folder / "-rf.jpg")
    (folder / "Thumbs.db").write_bytes(b"\0")
    return len(names) + 1


def train_two_steps(name, data, output, target):
    hparams = {"clip_backbone": "tiny", "batch_size": 2, "contexts": "emoji"}
    words = ["--algorithm", "CARFT", "--dataset", name, "--data_dir", str(data), "--steps", "2"]
    words += ["--output_dir", str(output), "--hparams", json.dumps(hparams), "--workers", "0"]
    assert train.main([*words, "--skip_model_save", "--test_envs", str(target)]) == 0
    return list(map(json.loads, (output / "results.jsonl").read_text().splitlines()))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("PACS", 0),
        pytest.param("OfficeHome", 3, marks=pytest.mark.slow),
        pytest.param("TerraIncognita", 1, marks=pytest.mark.slow),
        pytest.param("VLCS", 2, marks=pytest.mark.slow),
        pytest.param("DomainNet", 4, marks=pytest.mark.slow),
    ],
)
def test_each_benchmark_trains_and_is_tabulated(name, target, tmp_path, capsys):
    benchmark = benchmarks.get(name)
    environments = [environment.folder for environment in benchmark.environments]
    counts = even(benchmark.classes, environments, max(1, 20 // len(benchmark.classes)))
    data = tmp_path / f"{name}'s data {{}}"
    root = grow(data / benchmark.folder, counts, jpeg(size=(9, 12)))
    label = benchmark.classes[1]
    counts[environments[target]][label] += add_odd_names(root / environments[target] / label)

    first, last = train_two_steps(name, data, tmp_path / "sweep" / "job", target)
    assert first["loss_kl"] == 0 and math.isfinite(last["loss"])
    assert last["data_edition"].startswith("differs: ")

    # An accuracy over n images is a whole number of n-ths, and n tells which were read.
    for number, classes in enumerate(counts.values()):
        held_out = int(sum(classes.values()) * 0.2)
        for split, n in (("in", sum(classes.values()) - held_out), ("out", held_out)):
            hits = last[f"env{number}_{split}_acc"] * n
            assert 0 <= hits <= n and abs(hits - round(hits)) < 1e-6, (number, split)

    capsys.readouterr()
    assert collect_results.main(["--input_dir", str(tmp_path / "sweep")]) == 0
    title = f"Dataset: {name}, model selection method: test-domain validation set"
    _, oracle = capsys.readouterr().out.split(title)
    row = oracle.splitlines()[2].split()
    accuracy = last[f"env{target}_in_acc"]
    assert row[0] == "CARFT" and row[1 + target] == f"{100 * accuracy:.1f}"
