"""A training that diverges, from the harness to the table."""

import json
import math

from domainbed.scripts import train

from domainbed_carft import cli


def diverging(output, *flags):
    hparams = {"lr": 1e6, "grad_clip": 1e6, "total_steps": 9, "warmup_steps": 1, "batch_size": 4}
    arguments = "--algorithm CARFT --dataset Debug28 --test_envs 0 --workers 0 --steps 9".split()
    arguments += ["--output_dir", str(output), "--hparams", json.dumps(hparams), *flags]
    assert train.main(arguments) == 0
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def test_a_diverged_training_is_reported_once_and_marked(tmp_path):
    dense = diverging(tmp_path / "each", "--checkpoint_freq", "1")
    first = next(r["step"] for r in dense if not math.isfinite(r["loss"]))
    sparse = diverging(tmp_path / "few", "--checkpoint_freq", "4")

    assert [r["step"] for r in sparse] == [0, 4, 8] and 0 < first < 4

    for records in (dense, sparse):
        marks = {r["step"]: r.get("diverged_at", "no mark") for r in records}
        assert marks == {step: first if step >= first else "no mark" for step in marks}

    for name in ("each", "few"):
        out = (tmp_path / name / "out.txt").read_text()
        assert out.count("diverged:") == 1 and f"loss is nan at step {first}." in out
        # The first update broke the weights, on which step 0 was recorded.
        assert first == 1 and not (tmp_path / name / "model_best.pkl").exists()


def test_a_diverged_job_is_done_but_its_cell_incomplete(tmp_path, capsys):
    marks = [diverging(tmp_path / target, "--test_envs", target)[-1] for target in "012"]
    assert all("diverged_at" in mark for mark in marks)

    capsys.readouterr()
    command = ["collect", str(tmp_path), "--strict", "--select", "oracle", "--format", "json"]
    assert cli.main(command) == 3

    output = capsys.readouterr()
    (table, *_) = json.loads(output.out)["tables"]
    assert [cell["mean"] for cell in table["rows"][0]["cells"]] == [None] * 3
    # The first update broke the weights, on which the record of step 0 was evaluated.
    assert output.err.count("the training diverged; 2 records from step 0 on without acc") == 3
