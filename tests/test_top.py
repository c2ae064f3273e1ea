"""The table of ``carft top``: what selection chose in each cell and trial."""

import json
import shlex

import collect_sweeps

from domainbed_carft import cli
from domainbed_carft.results.top import top
from domainbed_carft.sweep.hparam_defaults import changed_hparams, defaults


def lines_of_top(capsys, *words):
    assert cli.main(["top", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def write_ours(folder, trial, **hparams):
    """A job of CARFT under today's defaults, but for ``hparams``."""
    facts = {"prompts_digest": "0123", "amp": "off"}  # as a run fills them in and resolves them
    collect_sweeps.write_job(
        folder,
        f"trial-{trial}",
        algorithm="CARFT",
        trial_seed=trial,
        recorded=defaults("CARFT", "PACS") | facts | hparams,
        hparams=json.dumps(hparams),
    )


def test_a_row_has_cell_step_accuracies_and_folder_and_the_changed_hparams(tmp_path, capsys):
    write_ours(tmp_path, trial=0, kl_weight=3, wise_alpha=1.0)
    write_ours(tmp_path, trial=1, kl_weight=3, wise_alpha=0.5)
    options = ["--select", "training-domain", "--ignore", "hparams"]
    entries = json.loads("\n".join(lines_of_top(capsys, tmp_path, "--json", *options)))

    title, shared, head, *rows = lines_of_top(capsys, tmp_path, *options)
    assert title == "training-domain validation set"
    assert shared == "In all rows: kl_weight 3"
    assert head.split() == (
        "Data set Algorithm Left out Trial Hyperparameters Step Validation Accuracy Folder".split()
    )
    for entry, row, hparams in zip(entries, rows, [[], ["wise_alpha", "0.5"]], strict=True):
        assert row.split() == [
            "PACS",
            "CARFT",
            "A",
            str(entry["trial_seed"]),
            *hparams,
            str(entry["step"]),
            f"{100 * entry['validation_accuracy']:.1f}",
            f"{100 * entry['accuracy']:.1f}",
            str(tmp_path / f"trial-{entry['trial_seed']}"),
        ]


def test_each_method_and_setting_has_a_table(tmp_path, capsys):
    for name, hparams in (("a", '{"lr": 0.1}'), ("b", '{"lr": 0.2}')):
        collect_sweeps.write_job(tmp_path, name, hparams=hparams)
    lines = lines_of_top(capsys, tmp_path, "--select", "training-domain,oracle")

    assert [line for line in lines if "validation set" in line] == [
        f"{method}; hparam lr {rate}"
        for rate in (0.1, 0.2)
        for method in ("training-domain validation set", "test-domain validation set (oracle)")
    ]


def test_jobs_that_left_nothing_out_have_a_table_without_target_and_accuracy(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path, "all", test_envs=[])
    _, head, row = lines_of_top(capsys, tmp_path)

    assert head.split() == ["Data", "set", "Algorithm", "Trial", "Step", "Validation", "Folder"]
    assert row.endswith(str(tmp_path / "all"))


def test_names_in_records_move_no_terminal(tmp_path, capsys):
    collect_sweeps.write_job(
        tmp_path, "job", algorithm="\x1b[31m", hparams='{"a": "\\u001b[0m"}', recorded={"a": "\x1b"}
    )
    assert "\x1b" not in "".join(lines_of_top(capsys, tmp_path))


def test_changed_hparams_are_those_that_are_not_the_default():
    recorded = defaults("CARFT", "PACS") | {"amp": "off", "resnet18": True, "clip_digest": "1"}
    arguments = {"algorithm": "CARFT", "dataset": "PACS", "is_drawn": False}
    assert changed_hparams(**arguments, recorded=recorded, hparams_set={}) == {}

    changed = changed_hparams(
        **arguments, recorded=recorded | {"lr": 1.0}, hparams_set={"amp": "off", "resnet18": True}
    )
    assert changed == {"amp": "off", "resnet18": True, "lr": 1.0}

    tiny = defaults("CARFT", "PACS", {"clip_backbone": "tiny"}) | {"clip_backbone": "tiny"}
    assert tiny["lr"] == 3e-4
    assert changed_hparams(**arguments, recorded=tiny, hparams_set={}) == {"clip_backbone": "tiny"}


def test_steps_that_the_schedule_follows_are_no_change():
    recorded = defaults("CARFT", "PACS") | {"total_steps": 26}
    arguments = {"algorithm": "CARFT", "dataset": "PACS", "recorded": recorded, "hparams_set": {}}
    assert changed_hparams(**arguments, is_drawn=False, steps=26) == {}
    assert changed_hparams(**arguments, is_drawn=False, steps=30) == {"total_steps": 26}


def test_the_argument_of_a_run_of_0_2_0_has_no_name_that_went(tmp_path):
    recorded = {"lr": 0.1, "kl_over": "contexts", "lipsum_texts": 80, "original_precision": "bf16"}
    collect_sweeps.write_job(tmp_path / "as-now", algorithm="CARFT", recorded=recorded)
    recorded |= {"kl_over": "captions", "clip_digest": "1"}
    collect_sweeps.write_job(tmp_path / "other", algorithm="CARFT", recorded=recorded)

    for folder, expected in (
        ("as-now", {"lr": 0.1}),
        ("other", {"lr": 0.1, "kl_over": "captions"}),
    ):
        entry = top([tmp_path / folder]).entries[0]
        assert json.loads(shlex.split(entry.argument)[1]) == expected


def test_changed_hparams_of_other_algorithms_are_those_set_or_drawn():
    recorded = {"lr": 0.1, "batch_size": 8}
    arguments = {"algorithm": "ERM", "dataset": "PACS", "recorded": recorded}
    assert changed_hparams(**arguments, hparams_set={"lr": 0.1}, is_drawn=False) == {"lr": 0.1}
    assert changed_hparams(**arguments, hparams_set={}, is_drawn=True) == recorded
