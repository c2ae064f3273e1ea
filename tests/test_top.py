"""``carft top``: what selection chose in each cell and trial."""

import json
import math
import shlex

import collect_sweeps

from domainbed_carft import cli
from domainbed_carft.results.top import top


def lines_of_top(capsys, *words):
    assert cli.main(["top", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_row_has_step_accuracies_folder_and_the_hparams_that_are_set(tmp_path, capsys):
    for trial, wise_alpha in enumerate((1.0, 0.5)):
        hparams = {"kl_weight": 3, "wise_alpha": wise_alpha}
        recorded = {"lr": 5e-6, "prompts_digest": "0123", **hparams}
        facts = {"recorded": recorded, "hparams": json.dumps(hparams), "trial_seed": trial}
        collect_sweeps.write_job(tmp_path, f"trial-{trial}", **facts)
    options = ["--select", "training-domain", "--ignore", "hparams"]
    title, shared, head, *rows = lines_of_top(capsys, tmp_path, *options)
    assert title == "training-domain validation set"
    assert shared == "In all rows: kl_weight 3"
    names = "Dataset Algorithm Target Trial Hyperparameters Step Validation Accuracy Folder"
    assert head.split() == names.split()

    entry, _ = top(tmp_path, methods=["training-domain"], ignored=["hparams"]).entries
    percent = [f"{100 * value:.1f}" for value in (entry.validation_accuracy, entry.accuracy)]
    labels = ["PACS", "ERM", "A", "0", "wise_alpha", "1.0", str(entry.step)]
    assert rows[0].split() == [*labels, *percent, str(tmp_path / "trial-0")]
    assert rows[1].split()[3:6] == ["1", "wise_alpha", "0.5"]


def test_of_jobs_that_left_nothing_out_the_first_of_equals_counts_without_a_target(
    tmp_path, capsys
):
    for hparams_seed in (1, 0):
        facts = {"test_envs": [], "hparams_seed": hparams_seed}
        job = collect_sweeps.write_job(tmp_path / f"{hparams_seed}", "equal", **facts)
    _, head, row = lines_of_top(capsys, tmp_path)
    assert head.split() == ["Dataset", "Algorithm", "Trial", "Step", "Validation", "Folder"]
    assert row.endswith(str(job))

    (entry,) = top(tmp_path).entries
    assert (entry.selection, entry.test_env, entry.accuracy) == ("in-domain", None, None)
    assert (entry.hparams_seed, entry.members) == (0, 2)
    last = json.loads((job / "results.jsonl").read_text().splitlines()[-1])
    mean = sum(last[f"env{env}_out_acc"] for env in range(4)) / 4
    assert math.isclose(entry.validation_accuracy, mean)


def test_values_of_records_break_neither_terminal_nor_json(tmp_path, capsys):
    recorded = {"lr": math.nan, "wd": math.inf, "a": "\x1b"}
    hparams = '{"a": "\\u001b[0m"}'
    collect_sweeps.write_job(tmp_path, algorithm="\x1b[31m", hparams=hparams, recorded=recorded)
    assert "\x1b" not in "".join(lines_of_top(capsys, tmp_path))

    lines = lines_of_top(capsys, tmp_path, "--select", "oracle", "--json")
    assert "NaN" not in lines[1]
    (entry,) = json.loads("\n".join(lines))
    assert entry["hparams"] == {"lr": None, "wd": None, "a": "\x1b"}
    assert '"lr": NaN, "wd": Infinity' in entry["argument"]


def test_drawn_hparams_are_shown_and_the_default_draw_has_none(tmp_path):
    drawn = {1: {"lr": 0.1, "batch_size": 8}, 2: {"lr": 0.2, "batch_size": 9}}
    for trial, hparams_seed in enumerate((1, 2, 0)):
        values = drawn.get(hparams_seed, {"lr": 1, "batch_size": 8})
        collect_sweeps.write_job(
            tmp_path,
            f"trial-{trial}",
            trial_seed=trial,
            hparams_seed=hparams_seed,
            recorded={"dropout": 0.5, **values, "margin": 3, "clip_digest": str(trial)},
            hparams='{"margin": 3}',
        )
    entries = top([tmp_path], methods=["training-domain"]).entries
    chosen = [{"margin": 3, **drawn.get(entry.hparams_seed, {})} for entry in entries]
    assert [entry.hparams_seed for entry in entries] == [1, 2, 0]
    assert [entry.hparams_chosen for entry in entries] == chosen


def test_the_best_hyperparameters_are_ready_to_train_with(tmp_path):
    recorded = {"words": "it's a {}", "data_edition": "new", "prompts_digest": "d"}
    collect_sweeps.write_sweep(
        tmp_path, choices=3, pairs=True, recorded=recorded, hparams='{"data_edition": "new"}'
    )
    entries = top(tmp_path).entries
    assert len(entries) == 3 * 2 * 4 * 2
    for entry in entries:
        flag, value = shlex.split(entry.argument)
        hparams = {"lr": 0.1 / (1 + entry.hparams_seed), "words": "it's a {}"}
        assert (flag, json.loads(value)) == ("--hparams", {**hparams, "data_edition": "new"})
        pairs = 3 if entry.selection == "leave-one-domain-out" else 0
        assert len(entry.folders) == 1 + pairs
        place = f"{entry.test_env}-{entry.trial_seed}-{entry.hparams_seed}"
        assert entry.folders[0] == str(tmp_path / f"{entry.algorithm}-{place}")

    first, second = top(tmp_path, only="Mixup, test environments 2,", methods=["oracle"]).entries
    assert (first.environment, first.algorithm, second.trial_seed) == ("P", "Mixup", 1)
