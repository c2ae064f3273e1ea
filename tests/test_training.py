"""A training that diverges, from the harness to the table."""

import json

from domainbed.scripts import train

from domainbed_carft import cli


def test_a_diverged_training_is_marked_once_and_its_cell_incomplete(tmp_path, capsys):
    hparams = {"lr": 1e6, "grad_clip": 1e6, "total_steps": 9, "warmup_steps": 1, "batch_size": 4}
    words = "--algorithm CARFT --dataset Debug28 --workers 0 --steps 9".split()
    words += ["--hparams", json.dumps(hparams)]
    for target in "012":
        job = tmp_path / target
        flags = ["--test_envs", target, "--checkpoint_freq", "4", "--output_dir", str(job)]
        assert train.main([*words, *flags]) == 0

        records = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
        # The first update broke the weights, on which the record of step 0 was evaluated.
        assert [(r["step"], r.get("diverged_at")) for r in records] == [(0, None), (4, 1), (8, 1)]
        out = (job / "out.txt").read_text()
        assert out.count("diverged:") == 1 and "loss is nan at step 1." in out
        assert not (job / "model_best.pkl").exists()

    capsys.readouterr()
    command = ["collect", str(tmp_path), "--strict", "--select", "oracle", "--format", "json"]
    assert cli.main(command) == 3
    output = capsys.readouterr()
    (table, *_) = json.loads(output.out)["tables"]
    assert [cell["mean"] for cell in table["rows"][0]["cells"]] == [None] * 3
    assert output.err.count("the training diverged; 3 records from step 0 on without acc") == 3
