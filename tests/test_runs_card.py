"""The card of an export: its facts, its page, and what they say of odd records."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import torch
from domainbed.scripts import train
from export_jobs import debug

from domainbed_carft.clips import openai
from domainbed_carft.jobs.facts import hparams_and_facts
from domainbed_carft.runs import export, saved

DOCS = Path(__file__).resolve().parents[1] / "docs" / "export.md"


def test_the_model_card_states_files_original_and_run(files, trained):
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    for name, path in (("weights", files.weights), ("head", files.head)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        assert facts[name] == {"file": path.name, "sha256": digest, "bytes": size}
        assert digest in files.readme.read_text(encoding="utf-8")
    assert facts["original"] == {"name": "tiny", "sha256": openai.TINY_SHA256}
    assert facts["quick_gelu"] is facts["open_clip_config"]["quick_gelu"] is True
    assert facts["precision"] == "fp32" and facts["open_clip_name"] is None

    record = json.loads((trained / "results.jsonl").read_text().splitlines()[-1])
    run_facts = facts["run"]
    for name in ("data_edition", "step", "prompts_digest", "clip_digest"):
        assert run_facts[name] == record[name]
    assert run_facts["hparams"] == {**record["hparams"], **hparams_and_facts(record, {})}
    assert run_facts["test_environments"] == ["fluent3d"] and run_facts["test_envs"] == [0]
    assert run_facts["accuracies"]["fluent3d"]["in"] == record["env0_in_acc"]
    assert run_facts["accuracies"]["twemoji"]["out"] == record["env3_out_acc"]
    assert run_facts["versions"]["PyTorch"] == facts["versions"]["torch"] == torch.__version__

    run = saved.open_run(trained)
    assert (facts["classes"], facts["contexts"]) == (run.classes, run.contexts)


def test_the_command_in_the_card_trains_the_same_again(tmp_path):
    job = debug(tmp_path / "job", "CARFT", "--seed", "7", "--trial_seed", "1")
    files = export.export(saved.open_run(job), tmp_path / "out.pt")
    command = json.loads(files.card.read_text())["run"]["command"]
    assert f"\n{command}\n" in files.readme.read_text()

    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "domainbed.scripts.train"]

    second_job = tmp_path / "again"
    assert train.main([*words[3:], "--output_dir", str(second_job), "--workers", "0"]) == 0

    first_weights, second_weights = (
        torch.load(f / "model.pkl", weights_only=True) for f in (job, second_job)
    )
    assert all(
        torch.equal(v, second_weights["model_dict"][k])
        for k, v in first_weights["model_dict"].items()
    )


def test_an_own_data_set_is_called_by_its_folders_name(files):
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    facts["run"]["dataset"] = "../somewhere/own3"
    page = export.readme(facts, "x.json")
    assert page.startswith("# CARFT on own3\n") and "\nData: own3" in page
    assert "somewhere" not in page.replace(facts["run"]["command"], "")


def test_the_readme_escapes_names_for_markdown(files):
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    facts["run"]["hparams"] = {"contexts": ["a|b", "<i>", "`c`", "d\ne"]}
    page = export.readme(facts, "x.json")
    row = next(line for line in page.splitlines() if line.startswith("| contexts"))
    assert row == r'| contexts | \["a\|b", "\<i\>", "\`c\`", "d\\ne"\] |'
    assert "| fluent3d (left out) |" in page and "| twemoji |" in page


def test_the_documentation_has_all_keys_and_names(files):
    text = DOCS.read_text(encoding="utf-8")
    facts = json.loads(files.card.read_text())
    head = torch.load(files.head, weights_only=True)
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, flags=re.MULTILINE)
    documented = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(documented) == sorted([*head, *facts])

    names = {export.open_clip_name(name) for name in openai.OPENAI_WEIGHTS}
    assert {*re.findall(r"`([\w-]+-quickgelu)`", text)} <= names
