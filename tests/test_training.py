"""A training that diverges."""

import json

from domainbed.scripts import train


def test_diverged_training_is_reported_once_and_saves_no_best_weights(tmp_path):
    hparams = {"lr": 1e6, "grad_clip": 1e6, "total_steps": 9, "warmup_steps": 1, "batch_size": 4}
    words = "--algorithm CARFT --dataset Debug28 --test_envs 0 --workers 0 --steps 9".split()
    words += ["--hparams", json.dumps(hparams), "--checkpoint_freq", "4"]
    assert train.main([*words, "--output_dir", str(tmp_path)]) == 0

    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    # Step 0 is evaluated after the first update, which already diverged.
    assert [(r["step"], r.get("diverged_at")) for r in records] == [(0, None), (4, 1), (8, 1)]
    out = (tmp_path / "out.txt").read_text()
    assert out.count("diverged:") == 1 and "loss is nan at step 1." in out
    assert not (tmp_path / "model_best.pkl").exists()
