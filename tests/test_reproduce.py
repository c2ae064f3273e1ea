"""The commands of docs/reproduce.md, in order, with generated copies of the five datasets."""

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
# A minute of work: the embedded CLIP checkpoint, two steps, one target per dataset, one trial.
SHORT = {
    "trials": 1,
    "test_environments": [0],
    "steps": 2,
    "hparams": {"clip_backbone": "tiny", "batch_size": 2, "contexts": "imagenet7"},
}


def read_commands(beginning):
    """Return commands of the page by their beginning, as words without ``carft``."""
    page = (REPO / "docs" / "reproduce.md").read_text(encoding="utf-8")
    lines = re.findall(rf"^carft ({beginning}.*)$", page, flags=re.MULTILINE)
    assert lines, f"the page has no {beginning}"
    return [shlex.split(line) for line in lines]


def test_commands_of_page_run_from_data_to_report(tmp_path, monkeypatch):
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

    (preflight,) = read_commands("preflight")
    assert run(preflight) == 1
    rows = json.loads(Path("OUT", "preflight.json").read_text())["rows"]
    failures = {row["section"] for row in rows if row["state"] == "failure"}
    assert failures == {"zero-shot gate"}, "noise is recognised by chance"

    verifications = read_commands("data verify")
    assert [words[2] for words in verifications] == [*DATASETS]
    launches = [words for words in read_commands("sweep launch domainbed") if "slurm" not in words]
    for words in (
        *verifications,
        *launches,
        *read_commands("collect OUT"),
        *read_commands("report"),
    ):
        assert run(words) == 0, words
    assert len([*Path("OUT").glob("*/done")]) == len(DATASETS)
    assert "tabular" in Path("table.tex").read_text()
    assert Path("report", "index.html").exists()
