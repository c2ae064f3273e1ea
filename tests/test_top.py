"""The table of ``carft top``: what selection chose in each cell and trial."""

import json
import subprocess
import sys

import collect_sweeps

from domainbed_carft import cli
from domainbed_carft.results.top import top


def lines_of_top(capsys, *words):
    assert cli.main(["top", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def write_ours(folder, trial, **hparams):
    """A job of CARFT whose command line sets ``hparams``."""
    others = {"lr": 5e-6, "prompts_digest": "0123", "amp": "off"}
    collect_sweeps.write_job(
        folder,
        f"trial-{trial}",
        algorithm="CARFT",
        trial_seed=trial,
        recorded=others | hparams,
        hparams=json.dumps(hparams),
    )


def test_a_row_has_cell_step_accuracies_and_folder_and_the_hparams_that_are_set(tmp_path, capsys):
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
    for entry, row, hparams in zip(
        entries, rows, [["wise_alpha", "1.0"], ["wise_alpha", "0.5"]], strict=True
    ):
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


def test_of_a_random_search_the_drawn_hparams_are_shown_and_the_default_draw_has_none(tmp_path):
    drawn = {1: {"lr": 0.1, "batch_size": 8}, 2: {"lr": 0.2, "batch_size": 9}}
    for trial, hparams_seed in ((0, 1), (1, 2), (2, 0)):
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


def test_top_and_report_load_no_torch(tmp_path):
    write_ours(tmp_path, trial=0, kl_weight=3)
    code = (
        "import sys\n"
        "from domainbed_carft import cli\n"
        f"status = cli.main(['top', {str(tmp_path)!r}])\n"
        f"status += cli.main(['report', {str(tmp_path)!r}, '-o', {str(tmp_path / 'report')!r}])\n"
        "print(status, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
