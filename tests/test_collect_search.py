"""Tables of declared searches and of several targets left out together."""

import json

import pytest
from search_sweeps import LABELS, SEARCH, STAGES, parse, read_records, recorded, staged, validation

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job, Role, identity
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import selection
from domainbed_carft.results.collect import collect
from domainbed_carft.sweep import launch, search

SOURCES = SEARCH.split("search:")[0] + "test_environments: single-source\n"


def launched(text, out, records=recorded):
    """The manifest of a sweep, and records of its jobs, of the second stage, too."""
    declaration = parse(text)
    jobs = staged(declaration, out)
    for job in jobs.first:
        records(job)
    jobs = staged(declaration, out)
    for job in jobs.second:
        records(job)
    staged_search = search.search_entry(declaration, jobs)
    launch.write_manifest(declaration, out, jobs.launchable, search=staged_search)
    return jobs


def value_of(job):
    return json.loads(job.args.get("hparams", "{}")).get("lr", 0)


def in_accuracy_at_best(job, target):
    """The target's in-accuracy at the checkpoint with the best training-domain validation."""
    sources = [env for env in range(4) if env not in job.args["test_envs"]]
    best = max(
        read_records(job), key=lambda record: sum(record[f"env{env}_out_acc"] for env in sources)
    )
    return best[f"env{target}_in_acc"]


def cells(results, method):
    """(algorithm, column) -> cell of the first table by a method."""
    table = next(table for table in results.tables if table.method == method)
    return {
        (row.algorithm, column): cell
        for row in table.rows
        for column, cell in zip(table.columns, row.cells)
    }


def test_members_are_choices_of_the_selection_method_in_one_cell(tmp_path):
    jobs = launched(SEARCH, tmp_path).first
    results = collect(tmp_path, methods=["training-domain"])
    assert len(results.collection.groups) == 1

    for (algorithm, column), cell in cells(results, "training-domain").items():
        target = LABELS.index(column)
        for trial, accuracy in cell.accuracies.items():
            rivals = [
                job
                for job in jobs
                if job.args["algorithm"] == algorithm
                and job.args["test_envs"] == [target]
                and job.args["trial_seed"] == trial
            ]
            best = max(rivals, key=lambda job: (validation(job), value_of(job)))
            assert accuracy == in_accuracy_at_best(best, target)
        assert len(cell.accuracies) == 2 and not cell.missing

    (note, *_) = results.notes
    members = "lr from 1e-05, 0.0001, 0.001 (3 members)"
    assert note == f"Searched: {members}: CARFT on PACS, CLIPFineTune on PACS."


def test_an_outcome_names_the_chosen_values_and_their_number(tmp_path):
    launched(SEARCH, tmp_path)
    (group,) = collecting.gather([tmp_path]).groups
    for selected in selection.select(group.runs, "training-domain"):
        outcome = selected.outcome
        if selected.algorithm == "CLIPZeroShot":
            assert (outcome.values, outcome.members) == ({}, 1)
        else:
            assert outcome.values == {"lr": value_of(outcome.run.job)} and outcome.members == 3


def test_of_equally_good_members_the_last_counts_as_in_domainbed(tmp_path):
    launched(SEARCH, tmp_path, lambda job: recorded(job, accuracies=lambda step: [0.5] * 8))
    (group,) = collecting.gather([tmp_path]).groups
    chosen = {
        selected.outcome.values["lr"]
        for selected in selection.select(group.runs, "oracle")
        if selected.algorithm == "CARFT"
    }
    assert chosen == {1e-3}


def test_a_missing_member_is_named_by_its_values(tmp_path):
    jobs = launched(SEARCH, tmp_path).first
    job = next(job for job in jobs if job.args["test_envs"] == [2] and value_of(job) == 1e-4)
    (job.folder / "results.jsonl").unlink()

    results = collect(tmp_path)
    cell = cells(results, "training-domain")[job.args["algorithm"], "photo"]
    assert cell.missing == ("--test_envs 2 has no record: trial 0 lr=0.0001",)
    assert results.summary["incomplete_cells"] > 0


def test_of_two_stages_the_second_is_shown_and_the_budget_named(tmp_path):
    jobs = launched(STAGES, tmp_path)
    results = collect(tmp_path, methods=["training-domain"])
    assert results.summary["jobs"] == len(jobs.second) == 24 and not results.defects

    shown = cells(results, "training-domain")
    for job in jobs.second:
        target = job.args["test_envs"][0]
        cell = shown[job.args["algorithm"], LABELS[target]]
        assert cell.accuracies[job.args["trial_seed"]] == in_accuracy_at_best(job, target)

    budget = next(note for note in results.notes if note.startswith("Budget"))
    assert "24 jobs on trial 5 chose by training-domain validation" in budget
    assert "24 jobs on trials 0, 1 train what was chosen" in budget

    (group,) = results.collection.groups
    members = {
        (selected.algorithm, selected.outcome.members)
        for selected in selection.select(group.runs, "training-domain")
    }
    assert members == {("CARFT", 3), ("CLIPFineTune", 3), ("CLIPZeroShot", 1)}


def test_a_first_stage_without_a_second_is_shown_with_a_note(tmp_path):
    declaration = parse(STAGES)
    jobs = staged(declaration, tmp_path)
    for job in jobs.first[:20]:
        recorded(job)
    staged_search = search.search_entry(declaration, jobs)
    launch.write_manifest(declaration, tmp_path, jobs.launchable, search=staged_search)

    results = collect(tmp_path)
    assert results.summary["jobs"] == 20
    assert any("has not chosen yet" in note for note in results.notes)


def test_a_choice_by_target_stays_one_cell_a_target(tmp_path):
    text = STAGES.replace("n: 1}}", "n: 1}}\n  choose_by: target")
    jobs = launched(text, tmp_path)
    chosen = {value_of(job) for job in jobs.second if job.args["algorithm"] == "CARFT"}
    results = collect(tmp_path)
    assert len(chosen) > 1 and len(results.collection.groups) == 1 and not results.defects


def prefers(value):
    """Writes records by which training-domain validation prefers a learning rate."""

    def write(job):
        accuracy = 0.9 if value_of(job) == value else 0.1
        recorded(job, accuracies=lambda step: [accuracy] * 8)

    return write


def test_jobs_of_an_earlier_choice_are_left_out(tmp_path):
    earlier = launched(STAGES, tmp_path, prefers(1e-5))
    later = launched(STAGES, tmp_path, prefers(1e-4))

    shown = {run.job.folder for run in collect(tmp_path).collection.runs}
    assert shown == {job.folder for job in later.second}
    assert len(shown & {job.folder for job in earlier.second}) == 8  # those of CLIPZeroShot


def row_of_source(results, label, algorithm):
    """The row of an algorithm in the one table of those trained on an environment alone."""
    (table,) = (table for table in results.tables if table.setting == f"trained on {label}")
    return next(row for row in table.rows if row.algorithm == algorithm)


def test_a_single_source_has_a_table_of_its_targets(tmp_path):
    jobs = launched(SOURCES, tmp_path).first
    results = collect(tmp_path, methods=["training-domain"])

    for source, label in enumerate(LABELS):
        row = row_of_source(results, label, "CARFT")
        for target, cell in enumerate(row.cells):
            if target == source:
                assert not cell.is_expected
                continue
            expected = {
                job.args["trial_seed"]: in_accuracy_at_best(job, target)
                for job in jobs
                if job.args["algorithm"] == "CARFT" and source not in job.args["test_envs"]
            }
            assert cell.accuracies == expected and len(expected) == 2 and not cell.missing
        means = [100 * sum(cell.accuracies.values()) / 2 for cell in row.cells if cell.is_expected]
        assert row.average == pytest.approx(sum(means) / 3, abs=1e-9)


def test_single_source_by_oracle_uses_the_targets_out_split_at_the_last_step(tmp_path):
    jobs = launched(SOURCES, tmp_path).first
    row = row_of_source(collect(tmp_path, methods=["oracle"]), "photo", "CLIPFineTune")
    for job in jobs:
        if job.args["algorithm"] == "CLIPFineTune" and job.args["test_envs"] == [0, 1, 3]:
            last = read_records(job)[-1]
            for target in (0, 1, 3):
                accuracy = row.cells[target].accuracies[job.args["trial_seed"]]
                assert accuracy == last[f"env{target}_in_acc"]


THREE = {"dataset": "three", "algorithm": "ERM", "trial_seed": 0, "hparams_seed": 0, "seed": 0}


def write_three(out, test_envs):
    """A job on three environments in no manifest; returns it."""
    args = {**THREE, "test_envs": test_envs}
    folder = out / identity(args)
    folder.mkdir()
    record = {"step": 1, "args": args, "hparams": {}}
    for env in range(3):
        record |= {f"env{env}_in_acc": 0.1 * (env + 1), f"env{env}_out_acc": 0.5}
    (folder / "results.jsonl").write_text(json.dumps(record) + "\n")
    return Job(args, folder, role=Role(leaves_out_together=True))


def test_two_of_three_left_out_is_a_pair_unless_the_manifest_says_a_single_source(tmp_path, capsys):
    jobs = [write_three(tmp_path, test_envs) for test_envs in ([0, 1], [0, 2], [1, 2])]
    (table, _) = collect(tmp_path, methods=["training-domain"]).tables
    assert [cell.mean for cell in table.rows[0].cells] == [None] * 3

    manifest.add(tmp_path, manifest.Sweep(tuple(jobs)))
    results = collect(tmp_path, methods=["training-domain"])
    assert [table.setting for table in results.tables] == [f"trained on env{n}" for n in range(3)]
    assert row_of_source(results, "env0", "ERM").cells[1].mean == pytest.approx(20)
    assert cli.main(["collect", str(tmp_path)]) == 0
    assert "trained on env2" in capsys.readouterr().out


def test_pairs_of_three_beside_single_targets_are_for_cross_validation(tmp_path):
    for test_envs in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        write_three(tmp_path, test_envs)
    results = collect(tmp_path)
    assert not results.summary["incomplete_cells"]
    assert "leave-one-domain-out" in results.collection.methods


@pytest.mark.parametrize(("text", "folder"), [(SEARCH, "lr=0.0001"), (STAGES, ".")])
def test_domainbeds_own_collector_reads_a_member_or_the_second_stage(
    text, folder, tmp_path, capsys
):
    from domainbed.scripts import collect_results

    without_zero_shot = text.split("overrides")[0].replace(", CLIPZeroShot", "")
    launched(without_zero_shot, tmp_path)
    assert collect_results.main(["--input_dir", str(tmp_path / folder)]) == 0

    table = capsys.readouterr().out.split("training-domain validation set")[1]
    row = next(line for line in table.splitlines() if line.startswith("CARFT"))
    ours = cells(collect(tmp_path / folder, methods=["training-domain"]), "training-domain")
    for label in LABELS:
        cell = ours["CARFT", label]
        assert f"{cell.mean:.1f} +/- {cell.standard_error:.1f}" in row
