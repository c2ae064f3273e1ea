"""docs/reproduce.md: its commands, in their order, on made-up copies of the five datasets."""

import json
import re
import shlex
from pathlib import Path

import pytest
from fake_checkout import REPO
from PIL import Image
from ruamel.yaml import YAML

from domainbed_carft import cli
from domainbed_carft.data import benchmarks

pytestmark = pytest.mark.slow
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


def test_the_page_leads_from_the_data_to_the_verdicts(tmp_path, monkeypatch):
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
