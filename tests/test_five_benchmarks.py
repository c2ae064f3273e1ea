"""All five benchmarks from their folders to the table, on small trees with their real names.

Every tree has the environments and the class folders of the published set and a few small
pictures, among them what copies of the published sets have of oddities.
"""

from __future__ import annotations

import json
import math

import pytest
from data_trees import even, grow, jpeg
from domainbed.scripts import collect_results, train
from PIL import Image
from test_benchmarks import TOTALS

from domainbed_carft.data import benchmarks
from domainbed_carft.method import prompts

CONTEXTS = ["a photo of a {}.", "a sketch of a {}."]


def train_two_steps(name, data, output, test_env):
    # fp32, so that the KL is exactly 0 at the original weights
    hparams = {"clip_backbone": "tiny", "batch_size": 2}
    hparams["contexts"] = CONTEXTS
    arguments = ["--algorithm", "CARFT", "--dataset", name, "--data_dir", str(data)]
    arguments += ["--output_dir", str(output), "--hparams", json.dumps(hparams), "--steps", "2"]
    arguments += ["--workers", "0", "--skip_model_save", "--test_envs", str(test_env)]
    return train.main(arguments)


def plant(data, name, pictures):
    """A whole set below ``data``: environment -> class -> pictures."""
    benchmark = benchmarks.get(name)
    counts = even(benchmark.classes, [e.folder for e in benchmark.environments], pictures)
    grow(data / benchmark.folder, counts, jpeg(size=(9, 12)))
    return counts


def add_oddities(folder):
    """What is harmless in a class folder; returns how many pictures were added."""
    (folder / 'it\'s "cut" off.jpg').write_bytes(jpeg()[:-900])
    (folder / "for print.JPEG").write_bytes(jpeg("CMYK"))
    image = Image.effect_noise((9, 12), 90).convert("P")
    image.save(folder / "a palette.png", transparency=3)
    (folder / "Thumbs.db").write_bytes(b"\0")
    names = ('say "cheese".png', " two  spaces .jpg", "ö {} $HOME %s.jpg", "-rf.jpg")
    for name in names:
        (folder / name).write_bytes(jpeg())
    (folder / "link.jpg").symlink_to(folder / "-rf.jpg")
    return 3 + len(names) + 1


@pytest.mark.parametrize(
    ("name", "test_env"),
    [
        *[("PACS", 0), ("OfficeHome", 3), ("TerraIncognita", 1)],
        *[
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (("VLCS", 2), ("DomainNet", 4))
        ],
    ],
)
def test_each_benchmark_trains_and_is_tabulated(name, test_env, tmp_path, capsys):
    benchmark = benchmarks.get(name)
    data = tmp_path / f"{name}'s data {{}}"
    counts = plant(data, name, max(1, 20 // len(benchmark.classes)))
    environment = benchmark.environments[test_env].folder
    label = benchmark.classes[1]
    counts[environment][label] += add_oddities(data / benchmark.folder / environment / label)
    assert train_two_steps(name, data, tmp_path / "sweep" / "job", test_env) == 0

    lines = (tmp_path / "sweep" / "job" / "results.jsonl").read_text().splitlines()
    first, last = map(json.loads, lines)
    assert first["loss_kl"] == 0 and math.isfinite(last["loss"])
    assert last["data_edition"].startswith("differs: ")

    prompts_digest = prompts.digest(CONTEXTS, [prompts.clean(c) for c in benchmark.classes])
    assert last["prompts_digest"] == prompts_digest

    # an accuracy over n pictures is a whole number of n-ths, and n tells which were read
    for index, classes in enumerate(counts.values()):
        held_out = int(sum(classes.values()) * 0.2)
        for split, n in (("in", sum(classes.values()) - held_out), ("out", held_out)):
            hits = last[f"env{index}_{split}_acc"] * n
            assert 0 <= hits <= n and abs(hits - round(hits)) < 1e-6, (index, split)

    capsys.readouterr()
    assert collect_results.main(["--input_dir", str(tmp_path / "sweep")]) == 0

    title = f"Dataset: {name}, model selection method: test-domain validation set"
    _, oracle = capsys.readouterr().out.split(title)
    header, row = (line.split() for line in oracle.splitlines()[1:3])
    assert header == ["Algorithm", *TOTALS[name], "Avg"]
    assert row[0] == "CARFT"
    assert row[1 + test_env] == f"{100 * last[f'env{test_env}_in_acc']:.1f}"
