"""A training that diverges, from the harness to the table."""

import json
import math

from domainbed.scripts import train

from domainbed_carft import cli


def run(output, algorithm, dataset, *more):
    arguments = ["--algorithm", algorithm, "--dataset", dataset, "--output_dir", str(output)]
    status = train.main([*arguments, "--test_envs", "0", "--workers", "0", *more])
    assert status == 0
    lines = (output / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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
