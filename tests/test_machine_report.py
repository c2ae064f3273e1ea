"""What to attach to a report of a run on a GPU: printed, asked for by a form, and writable."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import collect_sweeps
import pytest
from fake_checkout import REPO
from ruamel.yaml import YAML

from domainbed_carft import cli
from domainbed_carft.results import machine_report

GPU = "NVIDIA A100-SXM4-80GB"
FORM = REPO / ".github" / "ISSUE_TEMPLATE" / "ran-on-a-gpu.yml"


def write_sweep(folder: Path, **cost: object) -> None:
    """Two trials of CARFT on PACS whose records have the keys ``cost``."""
    collect_sweeps.write_sweep(folder, ["CARFT"], choices=1)
    for job in folder.iterdir():
        collect_sweeps.change_records(job, lambda record: record | cost)


def printed_commands(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The indented lines of the error stream."""
    err = capsys.readouterr().err
    return [line.strip() for line in err.splitlines() if line.startswith("  ")]


def test_collect_names_the_gpu_and_the_files_to_attach(tmp_path, capsys):
    write_sweep(tmp_path / "out", device=GPU, mem_gb=11.5)
    assert cli.main(["collect", str(tmp_path / "out")]) == 0

    err = capsys.readouterr().err
    assert f'These jobs ran on {GPU}. Please report it: open an issue "I ran it on a GPU"' in err
    for file in (tmp_path / "out" / "preflight.json", "results.json", "settings.json"):
        assert str(file) in err


def test_collect_says_nothing_of_reports_if_the_jobs_ran_on_a_processor(tmp_path, capsys):
    write_sweep(tmp_path / "out", device="AMD EPYC, 2 cores", mem_gb=0.0)
    assert cli.main(["collect", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "24 records of 8 jobs.\n"


def test_the_printed_commands_write_the_named_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "a sweep", device=GPU, mem_gb=11.5)
    (tmp_path / "a sweep" / "preflight.json").write_text("{}")
    assert cli.main(["collect", "a sweep"]) == 0

    collect, top = printed_commands(capsys)  # the rehearsal is there already
    assert cli.main(shlex.split(collect)[1:]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    table, *_ = results["tables"]
    assert GPU in {measure["device"] for measure in table["measures"]}
    assert results["published"]["figures"]

    top, _, target = top.partition(" > ")
    capsys.readouterr()
    assert cli.main(shlex.split(top)[1:]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["selection"] for row in rows} == {"training-domain", "oracle"}
    assert len(rows) == 2 * 8  # jobs
    assert target == "settings.json"


def test_without_a_rehearsal_its_command_is_named():
    rehearsal, *_ = machine_report.attachments(["a sweep"])
    assert rehearsal.file == "a sweep/preflight.json"
    assert shlex.split(rehearsal.command)[-2:] == ["--output_dir", "a sweep"]


def test_the_issue_form_asks_for_exactly_these_files():
    form = YAML(typ="safe").load(FORM)
    assert form["name"] == machine_report.ISSUE_FORM

    fields = {item["id"]: item["attributes"] for item in form["body"] if "id" in item}
    files = [field["label"] for field in fields.values() if field["label"].endswith(".json")]
    needed = machine_report.attachments(["OUT"])
    assert files == [Path(attachment.file).name for attachment in needed]

    for attachment in needed[1:]:
        assert attachment.command in fields[Path(attachment.file).stem]["description"]


def test_the_page_of_machines_has_rows_to_fill_with_their_commands():
    page = (REPO / "docs" / "machines.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if " | not run yet | " in line]
    for machine in ("H100", "A100", "RTX 4090", "ROCm"):
        commands = [row[3] for row in rows if machine in row[0]]
        assert any("make test-gpu" in command for command in commands), machine
        assert any("carft preflight" in command for command in commands), machine

    for attachment in machine_report.attachments(["OUT"])[1:]:
        assert f"\n{attachment.command}\n" in page
