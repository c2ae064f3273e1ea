"""``carft top``: the hyperparameters chosen in each cell and trial."""

import json
import math
import re
import shlex

import collect_sweeps
import pytest
import report_page

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.report.page import write_report
from domainbed_carft.results import collection
from domainbed_carft.results.top import top


def print_top(capsys, *words):
    assert cli.main(["top", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_row_shows_set_hparams_step_accuracies_and_folder(tmp_path, capsys):
    for trial, wise_alpha in enumerate((1.0, 0.5)):
        hparams = json.dumps({"kl_weight": 3, "wise_alpha": wise_alpha})
        facts = {"recorded": {"lr": 5e-6, **json.loads(hparams)}, "hparams": hparams}
        collect_sweeps.write_job(tmp_path, f"trial-{trial}", trial_seed=trial, **facts)
    _, shared, _, row, _ = print_top(
        capsys, tmp_path, "--select", "training-domain", "--ignore", "hparams"
    )
    entry, _ = top(tmp_path, methods=["training-domain"], ignored=["hparams"]).entries
    percent = [f"{100 * value:.1f}" for value in (entry.validation_accuracy, entry.accuracy)]
    labels = ["PACS", "ERM", "A", "0", "wise_alpha", "1.0", str(entry.step)]
    assert row.split() == [*labels, *percent, str(tmp_path / "trial-0")]
    assert shared.endswith(": kl_weight 3")


def test_entries_are_in_the_order_of_the_tables(tmp_path):
    """DomainBed's order: VLCS comes before PACS, and DomainNet after both."""
    for dataset in ("DomainNet", "PACS", "VLCS"):
        algorithms = ["ERM", "CARFT"]
        collect_sweeps.write_sweep(tmp_path / dataset, algorithms, choices=1, dataset=dataset)
    collected = collection.gather([tmp_path], methods=["oracle"])
    expected = [
        (table.dataset, row)
        for table in collect_sweeps.collect(collected).tables
        for row in table.rows
        if not table.averages
    ]
    assert expected[::2] == [(name, "CARFT") for name in ("VLCS", "PACS", "DomainNet")]
    entries = top(collected).entries
    assert [*dict.fromkeys((entry.dataset, entry.row) for entry in entries)] == expected


def test_functions_use_the_options_that_come_with_a_collection(tmp_path, monkeypatch):
    report_page.skip_drawing(monkeypatch)
    collect_sweeps.write_sweep(tmp_path / "sweep", ["CARFT"], choices=1)
    collected = collection.gather([tmp_path / "sweep"])
    assert collected.methods == ["training-domain", "oracle"]

    def list_methods(**options):
        tables = collect_sweeps.collect(collected, **options).tables
        entries = top(collected, **options).entries
        write_report(collected, tmp_path / "report", **options)
        page = report_page.read(tmp_path / "report").text
        title = re.search("<dt>Selected by</dt>\\s*<dd>(.*?)</dd>", page)[1]
        return {table.selection for table in tables}, {entry.selection for entry in entries}, title

    oracle = "test-domain validation set (oracle)"
    assert list_methods(methods=["oracle"]) == ({"oracle"}, {"oracle"}, oracle)
    names = {*collected.methods}
    assert list_methods() == (names, names, "training-domain validation set")

    for options in ({"by": ["lr"]}, {"ignored": ["versions"]}, {"methods": ["in-domain"]}):
        for function in (collect_sweeps.collect, top):
            with pytest.raises(CarftError, match=next(iter(options.values()))[0]):
                function(collected, **options)
        with pytest.raises(CarftError, match=next(iter(options.values()))[0]):
            write_report(collected, tmp_path / "report", **options)


@pytest.mark.parametrize("test_envs", [[], [0]])
def test_last_of_equal_choices_is_chosen_without_targets_as_with_them(tmp_path, test_envs):
    for hparams_seed in (1, 0):
        facts = {"test_envs": test_envs, "hparams_seed": hparams_seed}
        collect_sweeps.write_job(tmp_path / f"{hparams_seed}", "equal", **facts)
    entry, *others = top(tmp_path).entries
    assert (entry.hparams_seed, entry.members) == (1, 2)
    if not test_envs:
        assert not others
        assert (entry.selection, entry.test_env, entry.accuracy) == ("in-domain", None, None)


def test_special_values_of_records_are_escaped(tmp_path, capsys):
    recorded = {"lr": math.nan, "wd": math.inf, "a": "\x1b"}
    hparams = '{"a": "\\u001b[0m"}'
    collect_sweeps.write_job(tmp_path, algorithm="\x1b[31m", hparams=hparams, recorded=recorded)
    assert "\x1b" not in "".join(print_top(capsys, tmp_path))

    lines = print_top(capsys, tmp_path, "--select", "oracle", "--json")
    assert "NaN" not in lines[1]
    (entry,) = json.loads("\n".join(lines))
    assert entry["hparams"] == {"lr": None, "wd": None, "a": "\x1b"}
    assert '"lr": NaN, "wd": Infinity' in entry["argument"]


def test_chosen_hparams_include_drawn_ones(tmp_path):
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


def test_argument_repeats_the_best_hyperparameters(tmp_path):
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


@pytest.mark.parametrize("method", ["training-domain", "oracle", "clipood"])
def test_step_and_accuracies_are_those_of_the_chosen_checkpoint(tmp_path, method):
    """Validation is best at step 100, and the last record has another one."""
    accuracies = {  # step -> in-split and out-split of the target, out-splits of the others
        0: (0.1, 0.2, [0.30, 0.30, 0.36]),
        100: (0.4, 0.5, [0.80, 0.90, 0.85]),
        200: (0.6, 0.7, [0.50, 0.40, 0.36]),
    }
    job = collect_sweeps.write_job(tmp_path, test_envs=[0])

    def change(record):
        in_split, out_split, others = accuracies[record["step"]]
        names = {f"env{env}_out_acc": value for env, value in enumerate(others, 1)}
        return record | {"env0_in_acc": in_split, "env0_out_acc": out_split} | names

    collect_sweeps.change_records(job, change)
    (entry,) = top(tmp_path, methods=[method]).entries
    expected = {
        "training-domain": (100, 2.55 / 3, 0.4),
        "oracle": (200, 0.7, 0.6),
        "clipood": (200, 1.26 / 3, 0.7),
    }
    measured = (entry.step, entry.validation_accuracy, entry.accuracy)
    assert measured == pytest.approx(expected[method])
