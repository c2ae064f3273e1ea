"""docs/reproduce.md: its commands, in their order, on made-up copies of the five data sets."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy
from fake_checkout import REPO
from ruamel.yaml import YAML
from sweep_folders import finish, record
from test_five_benchmarks import plant

from domainbed_carft import cli
from domainbed_carft.data import benchmarks
from domainbed_carft.sweep import declaration_file, launch

PAGE = (REPO / "docs" / "reproduce.md").read_text(encoding="utf-8")
DATASETS = ("VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")

# DomainBed's, for 5,001 steps.
LAST_STEP = 5000
CHECKPOINT_FREQ = dict.fromkeys(DATASETS, 300) | {"DomainNet": 1000}

SHORT_SWEEP = "domainbed.yaml"
# So small that it takes a minute: the embedded CLIP, two steps, one target of each set, one trial.
SHORT = {
    "trials": 1,
    "test_environments": [0],
    "steps": 2,
    "hparams": {"clip_backbone": "tiny", "batch_size": 2, "contexts": "imagenet7"},
}


def commands(*names: str) -> list[list[str]]:
    """The page's commands that begin with one of ``names``, as words without ``carft``."""
    lines = re.findall(r"^(carft .+)$", PAGE, flags=re.MULTILINE)
    matching = [line for line in lines if line.removeprefix("carft ").startswith(names)]
    assert matching, f"the page has no {names}"
    return [shlex.split(line)[1:] for line in matching]


def published_figures() -> dict[str, float]:
    """Data set, or "average" -> CAR-FT's published accuracy, from the file that the package has."""
    path = REPO / "domainbed_carft" / "assets" / "published.csv"
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "CAR-FT"]
    return {row["dataset"]: float(row["accuracy"]) for row in rows}


def write_short_sweep(name: str, path: Path, **changes: object) -> None:
    """An included sweep, but for ``changes``."""
    declaration = YAML(typ="safe").load((REPO / "sweeps" / f"{name}.yaml").read_text())
    path.write_text(json.dumps(declaration | changes))


def train_on_paper(name: str, output: Path) -> Iterator[tuple[str, int, float]]:
    """Records of all jobs of an included sweep; yields data set, trial and accuracy of each.

    Each accuracy is near the published one. The jobs are those of the sweep, with ViT-B/16.
    """
    declaration = declaration_file.load(name)
    jobs = declaration.jobs("DATA", output)
    launch.write_manifest(declaration, output, jobs)
    published = published_figures()
    rng = np.random.default_rng(0)

    for job in jobs:
        dataset, trial = job.args["dataset"], job.args["trial_seed"]
        accuracy = published[dataset] / 100 + rng.normal(0, 0.01)
        (target,) = job.args["test_envs"]
        n_environments = len(benchmarks.get(dataset).environments)
        declared = json.loads(job.args.get("hparams") or "{}")
        hparams = {"clip_backbone": "ViT-B/16", "contexts": "imagenet", **declared}
        for step in (*range(0, LAST_STEP, CHECKPOINT_FREQ[dataset]), LAST_STEP):
            accuracies = {f"env{target}_in_acc": accuracy}
            record(job, step, n_environments, hparams=hparams, **accuracies)
        finish(job)
        yield dataset, trial, accuracy


def test_the_page_quotes_the_published_figures():
    header, _, row = re.search(r"^(\| PACS .+)\n(\|-.+)\n(\|.+)$", PAGE, re.MULTILINE).groups()
    names, figures = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (header, row))
    assert dict(zip(names, map(float, figures), strict=True)) == published_figures()


IMAGE_GFLOP = 35.1  # of ViT-B/16's forward pass; training takes three, and CAR-FT's original one
SHARE_OF_DATA_SHEET = 0.45
TFLOPS = {"H100 SXM": 989, "A100": 312, "RTX 4090": 165, "RTX 3090": 71}


def test_gpu_hours_are_the_arithmetic_that_the_page_says():
    images = {
        name: [
            int(count.replace(",", ""))
            for count in re.search(
                r"([\d,]+) (?:pictures|images) trained, ([\d,]+) evaluated",
                (REPO / "sweeps" / f"{name}.yaml").read_text(),
            ).groups()
        ]
        for name in ("domainbed", "domainbed-search")
    }
    for card, tflops in TFLOPS.items():
        flop_per_second = SHARE_OF_DATA_SHEET * tflops * 1e12
        trained_per_second = flop_per_second / (4 * IMAGE_GFLOP * 1e9)
        hours = {
            name: (trained * 4 + evaluated) * IMAGE_GFLOP * 1e9 / flop_per_second / 3600
            for name, (trained, evaluated) in images.items()
        }
        row = (
            f"| {card} ({tflops}) | {trained_per_second:,.0f} "
            f"| {hours['domainbed']:.1f} | {hours['domainbed-search']:.0f} |"
        )
        assert row in PAGE


@pytest.mark.parametrize(
    "clip,parameters,tokens,width,blocks",
    [
        ("ViT-B/32", 87.8e6, 50, 768, 12),
        ("ViT-B/16", 86.2e6, 197, 768, 12),
        ("ViT-L/14", 304e6, 257, 1024, 24),
        ("ViT-L/14@336px", 304.3e6, 577, 1024, 24),
    ],
)
def test_the_largest_batches_are_the_arithmetic_that_the_page_says(
    clip, parameters, tokens, width, blocks
):
    cells = []
    for gibibytes in (24, 40, 80):
        free = (0.9 * gibibytes - 1) * 2**30 - 20 * parameters
        images = free / (45 * tokens * width * blocks)
        cells.append(f"{int(images) // 10 * 10:,}")
    assert f"| {clip} | {' | '.join(cells)} |" in PAGE


def test_the_page_verifies_each_data_set_of_the_sweep():
    assert declaration_file.load("domainbed").datasets == [*DATASETS]
    assert [words[2] for words in commands("data verify")] == [*DATASETS]


def test_collect_gives_each_data_set_our_own_interval_by_students_t(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    accuracies: dict[str, dict[int, list[float]]] = {}
    for dataset, trial, accuracy in train_on_paper("domainbed", Path("OUT")):
        accuracies.setdefault(dataset, {}).setdefault(trial, []).append(accuracy)

    (words,) = commands("collect OUT --select training-domain --compare")
    assert cli.main([*words, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    entries = {entry["dataset"]: entry for entry in document["published"]["comparisons"]}

    for dataset in DATASETS:
        means = [100 * np.mean(values) for values in accuracies[dataset].values()]
        low, high = scipy.stats.t.interval(
            0.95, 2, loc=np.mean(means), scale=scipy.stats.sem(means)
        )
        figure = published_figures()[dataset]
        entry = entries[dataset]
        assert (entry["low"], entry["high"]) == pytest.approx((low - figure, high - figure))
    assert entries.keys() == {*DATASETS, "average"}
    unknown = "not known of the published one: selection, steps, protocol, edition, error"
    for entry in entries.values():
        assert (entry["verdict"], entry["reason"], entry["at_least"]) == ("none", unknown, True)


def test_the_settling_sweep_has_a_row_for_each_combination(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len([*train_on_paper("settle", Path("SETTLE"))]) == 360

    (words,) = commands("collect SETTLE")
    assert cli.main([*words, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)

    rows: dict[str, set[str]] = {}
    for entry in document["published"]["comparisons"]:
        rows.setdefault(entry["dataset"], set()).add(entry["algorithm"])
    assert (len(rows["PACS"]), len(rows["TerraIncognita"])) == (3 * 2 * 3, 2 * 2 * 3)


@pytest.mark.slow
def test_the_page_leads_from_the_data_to_the_verdicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in DATASETS:
        plant(Path("DATA"), name, max(1, 20 // len(benchmarks.get(name).classes)))
    write_short_sweep("domainbed", Path(SHORT_SWEEP), **SHORT)

    (rehearsal,) = commands("preflight")
    assert cli.main([SHORT_SWEEP if word == "domainbed" else word for word in rehearsal]) == 1
    rows = json.loads(Path("OUT", "preflight.json").read_text())["rows"]
    failures = {row["section"] for row in rows if row["state"] == "failure"}
    assert failures == {"zero-shot gate"}, "noise is recognised by chance"

    for words in commands("data verify", "sweep launch domainbed", "collect OUT", "report"):
        if "slurm" not in words:
            short = [SHORT_SWEEP if word == "domainbed" else word for word in words]
            assert cli.main(short) == 0, words

    assert len([*Path("OUT").glob("*/done")]) == len(DATASETS)
    assert "tabular" in Path("table.tex").read_text()
    assert Path("report", "index.html").exists()

    capsys.readouterr()
    (words,) = commands("collect OUT --select training-domain --compare")
    assert cli.main([*words, "--format", "json", "--strict"]) == 0
    comparisons = json.loads(capsys.readouterr().out)["published"]["comparisons"]
    assert {entry["dataset"] for entry in comparisons} == {*DATASETS, "average"}
    assert {entry["verdict"] for entry in comparisons} == {"none"}
    assert all("clip_backbone tiny" in entry["reason"] for entry in comparisons)
