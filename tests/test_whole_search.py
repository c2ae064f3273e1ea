"""A declared search in two stages over single sources, from a launch to tables and a report."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_page import Page
from runs_jobs import ENVIRONMENTS, write_pictures
from sweep_jobs import look, wait_until

from domainbed_carft import cli
from domainbed_carft.results.collect import collect
from domainbed_carft.sweep import states

SWEEP = """
name: whole
datasets: [{pictures}]
algorithms: [CARFT]
steps: 3
trials: 2
test_environments: single-source
hparams: {{clip_backbone: tiny, batch_size: 4, warmup_steps: 0, total_steps: 3, contexts: emoji}}
search:
  values: {{lr: [1e-4, 1e-2]}}
  choose_on: {{trials: {{from: 5, n: 1}}}}
"""


def start(folder, out):
    """A launch with two jobs at a time, as a process of its own."""
    words = ["sweep", "launch", "whole.yaml", "--output_dir", out, "--jobs", "2", "--yes"]
    return subprocess.Popen(
        [sys.executable, "-m", "domainbed_carft", *map(str, words), "--keep_weights", "none"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def stop_after(process, out, n_done, number):
    """Send a launch a signal as soon as so many jobs are done; its exit status."""
    wait_until((out / "sweep.json").exists)
    wait_until(lambda: look(out)["counts"]["done"] >= n_done, pause=1)
    process.send_signal(number)
    return process.wait(timeout=120)


def records_of(job):
    text = (Path(job["folder"]) / "results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def best(job):
    """The highest out-accuracy of a job's source, and the record that has it first."""
    (source,) = {*range(len(ENVIRONMENTS))} - {*job["test_envs"]}
    records = records_of(job)
    validation = [record[f"env{source}_out_acc"] for record in records]
    return max(validation), records[int(np.argmax(validation))]


def rate(job):
    return json.loads(records_of(job)[0]["args"]["hparams"])["lr"]


@pytest.mark.slow
def test_a_search_over_single_sources_goes_on_after_interruptions_to_its_tables(tmp_path):
    write_pictures(tmp_path / "pets")
    (tmp_path / "whole.yaml").write_text(SWEEP.format(pictures="./pets"))
    out = tmp_path / "out"

    assert stop_after(start(tmp_path, out), out, 2, signal.SIGINT) == 130
    counts = look(out)["search"]
    assert counts["second_stage_jobs"] == 6 and not counts["chosen"]

    assert stop_after(start(tmp_path, out), out, 8, signal.SIGTERM) == 128 + signal.SIGTERM
    chosen = look(out)["search"]["chosen"]
    assert len(chosen) == 1

    assert start(tmp_path, out).wait(timeout=400) == 0
    document = look(out)
    assert document["counts"]["done"] == 12 and document["search"]["chosen"] == chosen
    jobs = document["jobs"]
    assert {job["state"] for job in jobs} == {states.DONE}

    for choice in chosen:
        means = {}
        for job in jobs:
            if job["stage"] == "choose" and job["algorithm"] == choice["algorithm"]:
                means.setdefault(rate(job), []).append(best(job)[0])
        expected = max(sorted(means, reverse=True), key=lambda lr: np.mean(means[lr]))
        assert choice["values"] == {"lr": expected} and choice["members"] == 2
        assert choice["validation"] == pytest.approx(np.mean(means[expected]), abs=1e-12)

    results = collect(out, methods=["training-domain"])
    assert results.summary["jobs"] == 6 and not results.defects
    rows = {(row.algorithm, table.setting): row for table in results.tables for row in table.rows}
    for job in jobs:
        if job["stage"] == "repeat":
            (source,) = {*range(3)} - {*job["test_envs"]}
            for target in job["test_envs"]:
                setting = f"trained on {ENVIRONMENTS[source]}"
                cell = rows[job["algorithm"], setting].cells[target]
                accuracy = best(job)[1][f"env{target}_in_acc"]
                assert cell.accuracies[job["trial_seed"]] == accuracy

    assert cli.main(["report", str(out), "-o", str(tmp_path / "page"), "--n_examples", "0"]) == 0
    page = Page((tmp_path / "page" / "index.html").read_text())
    assert any(f"trained on {ENVIRONMENTS[0]}" in title for title in page.tables)
    assert "Budget of the search" in page.text
