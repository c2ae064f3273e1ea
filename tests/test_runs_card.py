"""The card of an export: its facts, its page, and what they say of odd records."""

import hashlib
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from domainbed.scripts import train
from export_jobs import blocks, debug, exported
from PIL import Image

from domainbed_carft import cli
from domainbed_carft.method import backbone, pictures
from domainbed_carft.plugin import emoji_styles
from domainbed_carft.runs import export, saved

DOCS = Path(__file__).resolve().parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    return exported(trained, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def run(trained):
    return saved.open_run(trained)


def test_the_card(files, trained, run):
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    for name, path in (("weights", files.weights), ("head", files.head)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        assert facts[name] == {"file": path.name, "sha256": digest, "bytes": size}
        assert digest in files.readme.read_text(encoding="utf-8")
    assert facts["original"] == {"name": "tiny", "sha256": backbone.TINY_SHA256}
    assert facts["quick_gelu"] is facts["open_clip_config"]["quick_gelu"] is True
    assert facts["precision"] == "fp32" and facts["open_clip_name"] is None
    record = json.loads((trained / "results.jsonl").read_text().splitlines()[-1])
    told = facts["run"]
    assert told["hparams"] == record["hparams"]
    assert told["prompts_digest"] == record["hparams"]["prompts_digest"]
    assert told["data_edition"] == record["data_edition"]
    assert told["step"] == record["step"] == 3
    assert told["test_environments"] == ["fluent3d"] and told["test_envs"] == [0]
    assert list(told["accuracies"]) == emoji_styles.EmojiStyles.ENVIRONMENTS
    assert told["accuracies"]["fluent3d"]["in"] == record["env0_in_acc"]
    assert told["accuracies"]["twemoji"]["out"] == record["env3_out_acc"]
    assert told["versions"]["PyTorch"] == facts["versions"]["torch"] == torch.__version__
    assert (facts["classes"], facts["contexts"]) == (run.classes, run.contexts)


def test_the_command_in_the_card_trains_the_same_again(tmp_path):
    job = debug(tmp_path / "job", "CARFT", "--seed", "7", "--trial_seed", "1")
    files = export.export(saved.open_run(job), tmp_path / "out.pt")
    command = json.loads(files.card.read_text())["run"]["command"]
    assert f"\n{command}\n" in files.readme.read_text()
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "domainbed.scripts.train"]
    again = tmp_path / "again"
    assert train.main([*words[3:], "--output_dir", str(again), "--workers", "0"]) == 0
    one, other = (torch.load(f / "model.pkl", weights_only=True) for f in (job, again))
    assert all(torch.equal(v, other["model_dict"][k]) for k, v in one["model_dict"].items())


def test_the_page_for_people_shows_names_as_they_are(files, run, tmp_path):
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    facts["run"]["hparams"] = {"contexts": ["a|b", "<i>", "`c`", "d\ne"]}
    page = export.readme(facts, "x.json")
    row = next(line for line in page.splitlines() if line.startswith("| contexts"))
    assert row == r'| contexts | \["a\|b", "\<i\>", "\`c\`", "d\\ne"\] |'
    assert "| fluent3d (left out) |" in page and "| twemoji |" in page


def test_weights_that_no_record_is_of(trained, tmp_path):
    content = torch.load(trained / "model.pkl", weights_only=True)
    (tmp_path / "results.jsonl").write_bytes((trained / "results.jsonl").read_bytes())
    torch.save({**content, "wise_ft_alpha": 0.25}, tmp_path / "half-way.pkl")
    files = export.export(saved.open_run(tmp_path / "half-way.pkl"), tmp_path / "out.pt")
    told = json.loads(files.card.read_text())["run"]
    assert told["accuracies"] == told["versions"] == {}
    assert told["wise_ft_alpha"] == 0.25 and told["test_environments"] == ["fluent3d"]
    page = files.readme.read_text()
    assert "WiSE-FT: 0.25 of the fine-tuned" in page and "No record" in page


def test_names_that_are_no_text(trained, tmp_path):
    """A file's name may be any bytes, and a record may have been damaged."""
    record = json.loads((trained / "results.jsonl").read_text().splitlines()[-1])
    record.update(env0_in_acc="?", env1_out_acc=float("nan"))
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n{cut\n")
    (tmp_path / "model.pkl").write_bytes((trained / "model.pkl").read_bytes())
    weights = tmp_path / os.fsdecode(b"\xff|.pt")
    assert cli.main(["export", str(tmp_path), "-o", str(weights)]) == 0
    files = export.Files.of(weights)
    accuracies = json.loads(files.card.read_text())["run"]["accuracies"]
    assert accuracies["fluent3d"] == {"in": None, "out": record["env0_out_acc"]}
    assert accuracies["line"] == {"in": record["env1_in_acc"], "out": None}
    (weights,) = re.findall(r"load_checkpoint\(model, (.*)\)", files.readme.read_text())
    assert eval(weights) == files.weights.name


@pytest.mark.parametrize(("name", "size"), [("domainbed", 48), ("clip", 48), ("domainbed", 28)])
def test_the_pre_processing_of_the_page_is_that_of_the_run(name, size, files, run):
    """Also where the encoder wants another size than the data set has."""
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    assert facts["pictures"]["protocol"] == "domainbed"
    assert facts["pictures"]["resolution"] == facts["pictures"]["data_set_size"] == 48
    facts["pictures"].update(protocol=name, data_set_size=size)
    code = blocks(export.readme(facts, "x.json"))[2]
    names = {}
    exec(re.sub(r"head = .*\n", "", code[: code.index("picture = ")]), names)
    pixels = np.random.default_rng(0).integers(0, 256, size=(70, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    x = pictures.transform(name, size, augment=False)(picture)[None]
    by_run = run.algorithm.input
    if name == "clip":
        by_run = pictures.CLIPInput(48, pictures.CLIP_MEAN, pictures.CLIP_STD)
    torch.testing.assert_close(names["preprocess"](picture)[None], by_run(x), rtol=0, atol=1e-4)


def test_the_documentation_has_all_keys_and_names(files):
    text = DOCS.read_text(encoding="utf-8")
    facts = json.loads(files.card.read_text())
    head = torch.load(files.head, weights_only=True)
    documented = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert documented == [*head, *facts]
    for name in backbone.OPENAI_WEIGHTS:
        assert f"`{export.open_clip_name(name)}`" in text
