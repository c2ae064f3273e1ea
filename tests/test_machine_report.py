"""The page of what is verified: what to run on them, and the files that a report of a run needs."""

from __future__ import annotations

import json
import re
import shlex

import collect_sweeps
from fake_checkout import REPO
from ruamel.yaml import YAML

from domainbed_carft import cli

GPU = "NVIDIA A100-SXM4-80GB"
FORM = REPO / ".github" / "ISSUE_TEMPLATE" / "ran-on-a-gpu.yml"
PAGE = REPO / "docs" / "verified.md"


def test_the_commands_of_the_page_write_the_files_that_the_form_asks_for(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    collect_sweeps.write_sweep(tmp_path / "OUT", ["CARFT"], choices=1)
    for job in (tmp_path / "OUT").iterdir():
        collect_sweeps.change_records(job, lambda record: record | {"device": GPU, "mem_gb": 11.5})
    commands = re.findall("^carft (?:collect|top) .*$", PAGE.read_text(), re.MULTILINE)
    collect, top = commands

    assert cli.main(shlex.split(collect)[1:]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert GPU in {measure["device"] for measure in results["tables"][0]["measures"]}
    assert results["published"]["figures"]

    top, _, target = top.partition(" > ")
    capsys.readouterr()
    assert cli.main(shlex.split(top)[1:]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2 * 8  # methods, jobs
    assert target == "settings.json"

    form = YAML(typ="safe").load(FORM)
    fields = {item["id"]: item["attributes"] for item in form["body"] if "id" in item}
    files = [field["label"] for field in fields.values() if field["label"].endswith(".json")]
    assert files == ["preflight.json", "results.json", "settings.json"]
    for command, field in zip(commands, ("results", "settings"), strict=True):
        assert command in fields[field]["description"]
    assert f'the form "{form["name"]}"' in PAGE.read_text()


def test_the_page_has_rows_to_fill_with_their_commands():
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if " not run yet " in line]
    for machine in ("H100", "A100", "RTX 4090", "ROCm"):
        commands = [row[2] for row in rows if machine in row[0]]
        assert any("make test-gpu" in command for command in commands), machine
        assert any("carft preflight" in command for command in commands), machine
