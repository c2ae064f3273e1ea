"""docs/reproduce.md: its commands, in their order, on made-up copies of the five data sets."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy
from fake_checkout import REPO
from PIL import Image
from ruamel.yaml import YAML
from sweep_folders import finish, record

from domainbed_carft import cli
from domainbed_carft.data import benchmarks
from domainbed_carft.sweep import declaration_file, launch

DATASETS = ("VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")
# So small that it takes a minute: the embedded CLIP, two steps, one target of each set, one trial.
SHORT = {
    "trials": 1,
    "test_environments": [0],
    "steps": 2,
    "hparams": {"clip_backbone": "tiny", "batch_size": 2, "contexts": "imagenet7"},
}


def commands(beginning):
    """The page's commands that begin so, as words without ``carft``."""
    page = (REPO / "docs" / "reproduce.md").read_text(encoding="utf-8")
    lines = re.findall(rf"^carft ({beginning}.*)$", page, flags=re.MULTILINE)
    assert lines, f"the page has no {beginning}"
    return [shlex.split(line) for line in lines]


def test_collect_gives_each_data_set_our_own_interval_by_students_t(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = REPO / "domainbed_carft" / "assets" / "published.csv"
    rows = [row for row in csv.DictReader(path.open()) if row["method"] == "CAR-FT"]
    figures = {row["dataset"]: float(row["accuracy"]) for row in rows}

    declaration = declaration_file.load("domainbed")
    jobs = declaration.jobs("DATA", Path("OUT"))
    launch.write_manifest(declaration, Path("OUT"), jobs)
    noise = np.random.default_rng(0)
    accuracies = {}
    for job in jobs:
        dataset = job.args["dataset"]
        (target,) = job.args["test_envs"]
        accuracy = figures[dataset] / 100 + noise.normal(0, 0.01)
        accuracies.setdefault(dataset, {}).setdefault(job.args["trial_seed"], []).append(accuracy)
        hparams = {"clip_backbone": "ViT-B/16", "contexts": "imagenet"}
        n_environments = len(benchmarks.get(dataset).environments)
        for step in (*range(0, 5000, 1000 if dataset == "DomainNet" else 300), 5000):
            record(job, step, n_environments, hparams=hparams, **{f"env{target}_in_acc": accuracy})
        finish(job)

    (words,) = commands("collect OUT --select training-domain --compare")
    assert cli.main([*words, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    entries = {entry["dataset"]: entry for entry in document["published"]["comparisons"]}
    assert entries.keys() == {*DATASETS, "average"}
    for dataset in DATASETS:
        means = [100 * np.mean(values) for values in accuracies[dataset].values()]
        differences = np.array(means) - figures[dataset]
        interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
        entry = entries[dataset]
        assert (entry["low"], entry["high"]) == pytest.approx((interval.low, interval.high))
        assert (entry["verdict"], entry["at_least"]) == ("none", True)
        assert "selection, steps, protocol, edition, error" in entry["reason"]


@pytest.mark.slow
def test_the_page_leads_from_the_data_to_the_verdicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for dataset in DATASETS:
        benchmark = benchmarks.get(dataset)
        for environment in benchmark.environments:
            for name in benchmark.classes:
                folder = Path("DATA", benchmark.folder, environment.folder, name)
                folder.mkdir(parents=True)
                for number in range(max(1, 20 // len(benchmark.classes))):
                    Image.effect_noise((9, 12), 90).convert("RGB").save(folder / f"{number}.jpg")
    declaration = YAML(typ="safe").load((REPO / "sweeps" / "domainbed.yaml").read_text())
    Path("domainbed.yaml").write_text(json.dumps(declaration | SHORT))

    def run(words):
        return cli.main(["domainbed.yaml" if word == "domainbed" else word for word in words])

    (rehearsal,) = commands("preflight")
    assert run(rehearsal) == 1
    rows = json.loads(Path("OUT", "preflight.json").read_text())["rows"]
    failures = {row["section"] for row in rows if row["state"] == "failure"}
    assert failures == {"zero-shot gate"}, "noise is recognised by chance"

    verifications = commands("data verify")
    assert [words[2] for words in verifications] == [*DATASETS]
    launches = [words for words in commands("sweep launch domainbed") if "slurm" not in words]
    for words in (*verifications, *launches, *commands("collect OUT"), *commands("report")):
        assert run(words) == 0, words
    assert len([*Path("OUT").glob("*/done")]) == len(DATASETS)
    assert "tabular" in Path("table.tex").read_text()
    assert Path("report", "index.html").exists()

    capsys.readouterr()
    (words,) = commands("collect OUT --select training-domain --compare")
    assert run([*words, "--format", "json", "--strict"]) == 0
    comparisons = json.loads(capsys.readouterr().out)["published"]["comparisons"]
    assert {entry["dataset"] for entry in comparisons} == {*DATASETS, "average"}
    assert all("clip_backbone tiny" in entry["reason"] for entry in comparisons)
