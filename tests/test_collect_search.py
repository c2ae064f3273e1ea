"""Tables of declared searches and of several targets held out together."""

import itertools
import json
from dataclasses import replace

import collect_sweeps
import pytest
import report_page
from search_sweeps import (
    LABELS,
    SEARCH,
    STAGES,
    parse,
    read_records,
    validation,
    write_results,
)

from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Role, get_folder_name
from domainbed_carft.results import collection
from domainbed_carft.results.collect import collect
from domainbed_carft.sweep import launch, search

SOURCES = SEARCH.split("search:")[0] + "test_environments: single-source\n"


def launched(text, out, records=write_results):
    """Write manifest and records of both stages of a sweep; return its jobs."""
    declaration = parse(text)
    first, _, _ = search.make_jobs(declaration, "D", out)
    for job in first:
        records(job)
    first, second, entry = search.make_jobs(declaration, "D", out)
    for job in second:
        records(job)
    launch.write_manifest(declaration, out, [*first, *second], search=entry)
    return first, second


def get_lr(job):
    return json.loads(job.args.get("hparams", "{}")).get("lr", 0)


def selected_accuracy(job, target):
    """Return the target's in-accuracy at the checkpoint chosen by training-domain validation."""
    sources = [env for env in range(4) if env not in job.args["test_envs"]]
    best = max(
        read_records(job), key=lambda record: sum(record[f"env{env}_out_acc"] for env in sources)
    )
    return best[f"env{target}_in_acc"]


def get_table(results, setting=""):
    (table,) = (t for t in results.tables if t.setting == setting and not t.averages)
    return table


def get_cells(results, algorithm, setting=""):
    """Return the cells of the environments."""
    table = get_table(results, setting)
    return [table.rows[algorithm][column] for column in table.accuracies]


def test_members_of_a_search_are_choices_within_a_cell(tmp_path):
    jobs = launched(SEARCH, tmp_path)[0]
    columns = ["environments", "draws", "jobs"]
    results = collect(tmp_path, select=["training-domain"], columns=columns)
    grid = next(grid for grid in results.grids if "chosen" in grid.title)
    assert grid.header == ["Algorithm", *LABELS, "Of"]
    table = get_table(results)

    for number, algorithm in enumerate(("CARFT", "CLIPFineTune")):
        cells = get_cells(results, algorithm)
        for target, trial in itertools.product(range(4), range(2)):
            rivals = [
                job
                for job in jobs
                if job.args["algorithm"] == algorithm
                and (job.args["test_envs"], job.args["trial_seed"]) == ([target], trial)
            ]
            best = max(rivals, key=lambda job: (validation(job), get_lr(job)))
            choices = table.get_choices(algorithm, table.accuracies[target])
            chosen = {entry.trial: entry.outcome for entry in choices}[trial]
            assert cells[target].trials[trial] == 100 * selected_accuracy(best, target)
            assert chosen.values == {"lr": get_lr(best)} and chosen.members == 3
            assert f"lr {get_lr(best)}" in grid.rows[number][1 + target]
        assert all(cell.is_complete for cell in cells)
        assert [table.get_column(name)[algorithm].mean for name in columns[1:]] == [3, 24]
        assert grid.rows[number][-1] == "3"

    assert [table.get_column(name)["CLIPZeroShot"].mean for name in columns[1:]] == [1, 8]
    members = "lr from 1e-05, 0.0001, 0.001 (3 members)"
    assert results.notes[0] == f"Searched: {members}: CARFT on PACS, CLIPFineTune on PACS."


def test_last_of_equally_good_members_is_chosen_as_in_domainbed(tmp_path):
    launched(SEARCH, tmp_path, lambda job: write_results(job, accuracies=lambda step: [0.5] * 8))
    table = get_table(collect(tmp_path, select=["oracle"]))
    choices = table.get_choices("CARFT", table.accuracies[0])
    assert {entry.outcome.values["lr"] for entry in choices} == {1e-3}


def test_missing_member_is_listed_by_its_values(tmp_path):
    jobs = launched(SEARCH, tmp_path)[0]
    job = next(job for job in jobs if job.args["test_envs"] == [2] and get_lr(job) == 1e-4)
    (job.folder / "results.jsonl").unlink()
    cells = get_cells(collect(tmp_path, select=["training-domain"]), job.args["algorithm"])
    assert cells[2].missing == ("--test_envs 2 has no record: trial 0 lr=0.0001",)


def test_tables_show_the_second_stage_and_the_budget(tmp_path):
    _, jobs = launched(STAGES, tmp_path)
    results = collect(tmp_path, select=["training-domain"])
    assert results.summary["jobs"] == len(jobs) == 24 and not results.defects
    for job in jobs:
        (target,) = job.args["test_envs"]
        cell = get_cells(results, job.args["algorithm"])[target]
        assert cell.trials[job.args["trial_seed"]] == 100 * selected_accuracy(job, target)
    chosen = results.collection.select("training-domain")
    members = {(selected.algorithm, selected.outcome.members) for selected in chosen}
    assert members == {("CARFT", 3), ("CLIPFineTune", 3), ("CLIPZeroShot", 1)}

    budget = next(note for note in results.notes if note.startswith("Budget"))
    assert "24 jobs on trial 5" in budget and "24 jobs on trials 0, 1" in budget


def test_tables_show_a_first_stage_without_a_second(tmp_path):
    def record_one_target(job):
        if job.args["test_envs"] == [0] and job.args["trial_seed"] == 5:
            write_results(job)

    launched(STAGES, tmp_path, record_one_target)
    results = collect(tmp_path)
    assert results.summary["jobs"] == 6 and "has not chosen yet" in " ".join(results.notes)


def test_tables_omit_jobs_of_an_earlier_choice(tmp_path):
    folders = []
    for value in (1e-5, 1e-4):

        def write(job, value=value):
            accuracy = 0.9 if get_lr(job) == value else 0.1
            write_results(job, accuracies=lambda step: [accuracy] * 8)

        folders.append({job.folder for job in launched(STAGES, tmp_path, write)[1]})
    earlier, later = folders
    assert {run.job.folder for run in collection.gather(tmp_path).runs} == later
    assert len(later & earlier) == 8  # jobs of CLIPZeroShot, which has no choice


def add_to_search(text, out, write=lambda job: None):
    """Launch a changed sweep whose first stage is not done: ``write`` the records of its jobs."""
    declaration = parse(text)
    first, _, _ = search.make_jobs(declaration, "D", out)
    for job in first:
        if not (job.folder / "done").exists():
            write(job)
    first, _, entry = search.make_jobs(declaration, "D", out)
    launch.write_manifest(declaration, out, first, search=entry)


ONE_METHOD = STAGES.replace("CARFT, CLIPFineTune", "CARFT")
ADDED_VALUE = ONE_METHOD.replace("1e-3]", "1e-3, 1e-2]")


@pytest.mark.parametrize("text", [STAGES, ADDED_VALUE])
def test_earlier_choice_counts_until_a_changed_search_has_chosen(tmp_path, text):
    launched(ONE_METHOD, tmp_path)
    before = collect(tmp_path, select=["training-domain"])
    chosen = manifest.read(tmp_path).search.chosen

    def write_one_target(job):
        if job.args["test_envs"] == [0]:
            write_results(job)

    add_to_search(text, tmp_path, write_one_target)
    results = collect(tmp_path, select=["training-domain"])
    assert manifest.read(tmp_path).search.chosen == chosen
    for row in ("CARFT", "CLIPZeroShot"):
        assert get_cells(results, row) == get_cells(before, row)
        assert {trial for cell in get_cells(results, row) for trial in cell.trials} == {0, 1}
    assert "The last launch has not chosen yet" in " ".join(results.notes)


def test_row_without_a_choice_is_a_gap_next_to_chosen_rows(tmp_path):
    launched(ONE_METHOD, tmp_path)
    add_to_search(STAGES, tmp_path, lambda job: write_results(job) if get_lr(job) == 1e-5 else None)
    results = collect(tmp_path, select=["training-domain"])
    for target, cell in enumerate(get_cells(results, "CLIPFineTune")):
        assert cell.mean is None and not cell.trials
        assert cell.missing == (f"--test_envs {target} has no record: in every trial",)

    jobs = launched(STAGES, tmp_path)[1]
    results = collect(tmp_path, select=["training-domain"])
    assert results.summary["jobs"] == len(jobs) == 24 and not results.defects
    assert "has not chosen" not in " ".join(results.notes)


def test_better_value_that_was_added_replaces_the_choice(tmp_path):
    launched(ONE_METHOD, tmp_path)
    perfect = lambda job: write_results(job, accuracies=lambda step: [1.0] * 8)  # noqa: E731
    jobs = launched(ADDED_VALUE, tmp_path, perfect)[1]
    assert {get_lr(job) for job in jobs if job.args["algorithm"] == "CARFT"} == {1e-2}
    assert {run.job.folder for run in collection.gather(tmp_path).runs} == {
        job.folder for job in jobs
    }
    assert [choice.values for choice in manifest.read(tmp_path).search.chosen] == [{"lr": 1e-2}]


@pytest.mark.parametrize("method", ["training-domain", "oracle"])
def test_single_source_has_a_table_of_its_targets(tmp_path, method):
    jobs = launched(SOURCES, tmp_path)[0]
    results = collect(tmp_path, select=[method])
    for source, label in enumerate(LABELS):
        cells = get_cells(results, "CARFT", f"trained on {label}")
        source_jobs = [
            job
            for job in jobs
            if job.args["algorithm"] == "CARFT" and source not in job.args["test_envs"]
        ]
        means = []
        for target in {0, 1, 2, 3} - {source}:
            accuracies = {}
            for job in source_jobs:
                last = read_records(job)[-1][f"env{target}_in_acc"]
                best = selected_accuracy(job, target)
                accuracies[job.args["trial_seed"]] = 100 * (last if method == "oracle" else best)
            cell = cells[target]
            assert cell.trials == accuracies and len(accuracies) == 2 and cell.is_complete
            means.append(sum(accuracies.values()) / 2)
        assert not cells[source].is_expected
        average = get_table(results, f"trained on {label}").get_column("average")["CARFT"]
        assert average.mean == pytest.approx(sum(means) / 3, abs=1e-9)


def test_two_of_three_held_out_are_a_pair_unless_the_manifest_has_a_single_source(tmp_path):
    for algorithm, targets in itertools.product(("CARFT", "ERM"), ([0, 1], [0, 2], [1, 2])):
        facts = {"dataset": "three", "algorithm": algorithm, "test_envs": targets}
        collect_sweeps.write_job(
            tmp_path, get_folder_name(facts), environments=list("abc"), **facts
        )
    results = collect(tmp_path, select=["training-domain"])
    assert [cell.mean for cell in get_cells(results, "ERM")] == [None] * 3

    role = Role(holds_out_together=True)
    jobs = [replace(run.job, role=role) for run in results.collection.runs]
    manifest.add(tmp_path, manifest.Sweep(tuple(jobs)))
    results = collect(tmp_path, select=["training-domain"], against="ERM")
    assert {entry.unit for entry in results.comparisons_against} == {"trial"}
    assert {table.setting for table in results.tables} == {f"trained on {name}" for name in "abc"}
    assert [cell.n for cell in get_cells(results, "ERM", "trained on a")] == [0, 1, 1]


@pytest.mark.parametrize("method", ["training-domain", "clipood"])
def test_search_in_two_stages_has_a_report_by_every_protocol(tmp_path, monkeypatch, method):
    report_page.skip_drawing(monkeypatch)
    launched(STAGES, tmp_path / "sweep")
    page = report_page.report_and_read(tmp_path / "sweep", "--select", method)
    assert "All choices of the search" in page.text


def test_latex_ranks_averages_over_the_same_environments(tmp_path):
    """Models trained on one environment have three targets, other ones for each environment."""
    launched(SOURCES, tmp_path)
    results = collect(tmp_path, select=["training-domain"])
    rows = [line.split(" & ") for line in results.write("latex").splitlines() if "; " in line]
    averages = {row[0]: row[-1] for row in rows if len(row) == 6}
    assert len(averages) == 12
    best = {label: text for label, text in averages.items() if "textbf" in text}
    assert len(best) == 4

    for label in LABELS:
        table = get_table(results, f"trained on {label}")
        cells = table.get_column("average")
        row = max(cells, key=lambda name: cells[name].mean)
        assert f"{cells[row].mean:.1f}" in best[f"{row}; trained on {label}".replace("_", r"\_")]
