"""Our algorithms trained by the harness as a user trains them."""

import json
import math

import pytest
import torch
from domainbed.scripts import train

from domainbed_carft import cli
from domainbed_carft.method import hparams, prompts


def run(output, algorithm, dataset, *more):
    arguments = ["--algorithm", algorithm, "--dataset", dataset, "--output_dir", str(output)]
    status = train.main([*arguments, "--test_envs", "0", "--workers", "0", *more])
    assert status == 0
    lines = (output / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("algorithm", hparams.ALGORITHMS)
def test_debug28(algorithm, tmp_path):
    records = run(tmp_path, algorithm, "Debug28", "--steps", "3", "--checkpoint_freq", "1")
    assert [r["step"] for r in records] == [0, 1, 2]
    for record in records:
        assert math.isfinite(record["loss"])
        assert all(0 <= record[f"env{e}_{s}_acc"] <= 1 for e in range(3) for s in ("in", "out"))
        assert record["hparams"]["clip_backbone"] == "tiny"
        assert record["hparams"]["class_names"] == "dataset:Debug28"
    if algorithm == "CARFT":
        assert records[0]["loss_kl"] == 0.0 and records[2]["loss_kl"] > 0.0


def test_words_and_data_can_be_audited_from_a_record(tmp_path):
    (record,) = run(tmp_path, "CARFT", "EmojiStyles", "--steps", "1")
    edition = "verified: of the package"
    assert record["data_edition"] == record["hparams"]["data_edition"] == edition
    classes = prompts.BUILT_IN_CLASSES["EmojiStyles"]
    digest = prompts.digest(prompts.contexts("emoji"), classes)
    assert record["hparams"]["prompts_digest"] == digest


def test_the_same_seed_gives_the_same_run(tmp_path):
    flags = ("--steps", "3", "--seed", "5")
    a, b = (run(tmp_path / name, "CARFT", "Debug28", *flags) for name in "ab")
    for name in ("loss", "loss_kl", "context_agreement", "env0_in_acc", "env2_out_acc"):
        assert a[-1][name] == b[-1][name]
    states = [torch.load(tmp_path / name / "model.pkl")["model_dict"] for name in "ab"]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def diverging(*more):
    hparams = {"lr": 1e6, "grad_clip": 1e6, "total_steps": 9, "warmup_steps": 1, "batch_size": 4}
    return ["--steps", "9", "--hparams", json.dumps(hparams), *more]


def test_a_diverged_training_is_told_once_and_its_records_are_marked(tmp_path):
    each = run(tmp_path / "each", "CARFT", "Debug28", *diverging("--checkpoint_freq", "1"))
    first = next(r["step"] for r in each if not math.isfinite(r["loss"]))
    few = run(tmp_path / "few", "CARFT", "Debug28", *diverging("--checkpoint_freq", "4"))
    assert [r["step"] for r in few] == [0, 4, 8] and 0 < first < 4
    for found in (each, few):
        marks = {r["step"]: r.get("diverged_at", "no mark") for r in found}
        assert marks == {step: first if step >= first else "no mark" for step in marks}
    for name in ("each", "few"):
        told = [
            s for s in (tmp_path / name / "out.txt").read_text().splitlines() if "diverged:" in s
        ]
        assert len(told) == 1
        assert f"loss is nan at step {first}." in told[0]
        # The first update broke the weights, on which step 0 was recorded.
        assert first == 1 and not (tmp_path / name / "model_best.pkl").exists()


def test_a_training_that_diverges_is_done_and_no_whole_cell(tmp_path, capsys):
    for target in ("0", "1", "2"):
        run(tmp_path / target, "CARFT", "Debug28", *diverging("--test_envs", target))
    capsys.readouterr()
    command = ["collect", str(tmp_path), "--strict", "--select", "oracle", "--format", "json"]
    assert cli.main(command) == 3
    said = capsys.readouterr()
    (table, *_) = json.loads(said.out)["tables"]
    assert [cell["mean"] for cell in table["rows"][0]["cells"]] == [None] * 3
    # The first update broke the weights, on which the record of step 0 was evaluated.
    assert said.err.count("the training diverged; 2 records from step 0 on without acc") == 3
    assert json.loads((tmp_path / "0" / "results.jsonl").read_text().splitlines()[-1])[
        "diverged_at"
    ]
