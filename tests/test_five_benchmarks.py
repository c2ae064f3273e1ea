"""Training on all five benchmarks, in small folders with their real names.

Each folder has the environments and classes of the published dataset, and a few small images, some
of them with unusual names.
"""

import json
import math

import pytest
from data_trees import even, grow, jpeg
from domainbed.scripts import train

from domainbed_carft.data import benchmarks

UNUSUAL_NAMES = ('say "cheese".png', " two  spaces .JPEG", "ö {} $HOME %s.jpg", "-rf.jpg")


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
def test_benchmark_trains_on_its_real_layout(name, target, tmp_path):
    benchmark = benchmarks.get(name)
    environments = [environment.folder for environment in benchmark.environments]
    counts = even(benchmark.classes, environments, max(1, 20 // len(benchmark.classes)))
    data = tmp_path / f"{name}'s data {{}}"
    root = grow(data / benchmark.folder, counts, jpeg(size=(9, 12)))

    folder = root / environments[target] / benchmark.classes[1]
    for unusual_name in UNUSUAL_NAMES:
        (folder / unusual_name).write_bytes(jpeg())
    (folder / "link.jpg").symlink_to(folder / "-rf.jpg")
    (folder / "Thumbs.db").write_bytes(b"\0")
    counts[environments[target]][benchmark.classes[1]] += len(UNUSUAL_NAMES) + 1

    hparams = {"clip_backbone": "tiny", "batch_size": 2, "contexts": "emoji"}
    flags = ["--algorithm", "CARFT", "--dataset", name, "--data_dir", str(data), "--steps", "2"]
    flags += ["--output_dir", str(tmp_path), "--hparams", json.dumps(hparams), "--workers", "0"]
    assert train.main([*flags, "--skip_model_save", "--test_envs", str(target)]) == 0
    first, last = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert first["loss_kl"] == 0 and math.isfinite(last["loss"])
    assert last["data_edition"].startswith("differs: ")

    # An accuracy over n images is a multiple of 1/n, which shows how many images were read.
    for number, classes in enumerate(counts.values()):
        held_out = int(sum(classes.values()) * 0.2)
        for split, n in (("in", sum(classes.values()) - held_out), ("out", held_out)):
            hits = last[f"env{number}_{split}_acc"] * n
            assert 0 <= hits <= n and abs(hits - round(hits)) < 1e-6, (number, split)
