"""``carft collect --by``: joint tables."""

import itertools
import json

import collect_sweeps
import packed_records
import pytest

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import job, manifest
from domainbed_carft.results.collect import collect


def write_grid(folder, values, algorithms=("CARFT",), **options):
    """A variant of a sweep for each value of kl_weight; None leaves it at the default, 1."""
    for number, value in enumerate(values):
        hparams = None if value is None else json.dumps({"kl_weight": value})
        recorded = {"kl_weight": 1.0 if value is None else value}
        collect_sweeps.write_sweep(
            folder / f"kl_weight={value}",
            list(algorithms),
            choices=1,
            hparams=hparams,
            recorded=recorded,
            seed=number,
            **options,
        )


def rows_of(results):
    """Row -> its cells' means, in the order of the first table."""
    return {row.algorithm: [cell.mean for cell in row.cells] for row in results.tables[0].rows}


def test_a_grid_becomes_rows_of_one_table(tmp_path):
    write_grid(tmp_path, [10, None, 0.5])
    apart = collect(tmp_path, methods=["oracle"])
    joint = collect(tmp_path, methods=["oracle"], by=["kl_weight"])

    assert len([table for table in apart.tables if not table.averages]) == 3
    assert len([table for table in joint.tables if not table.averages]) == 1

    means = {
        table.setting.removeprefix("hparam kl_weight "): [c.mean for c in table.rows[0].cells]
        for table in apart.tables
        if not table.averages
    }
    assert rows_of(joint) == {
        "CARFT (kl_weight 0.5)": means["0.5"],
        "CARFT (kl_weight 1.0, the default)": means["default"],
        "CARFT (kl_weight 10)": means["10"],
    }
    assert list(rows_of(joint)) == [
        "CARFT (kl_weight 0.5)",
        "CARFT (kl_weight 1.0, the default)",
        "CARFT (kl_weight 10)",
    ]


def test_variants_are_rows_and_what_has_one_value_keeps_its_name(peers_emoji, selected):
    results = collect(peers_emoji, methods=["training-domain"], by=["variant"])
    means = selected.groupby(["variant", "algorithm", "target"])["out"].mean()
    rows = rows_of(results)

    assert list(rows)[:3] == ["CARFT (methods)", "CARFT (CARFT+sma)", "CARFT (CARFT+ema)"]
    assert len(rows) == 22 and "CLIPood" in rows
    for variant, algorithm in means.index.droplevel("target").unique():
        name = packed_records.row_name(variant, algorithm)
        assert rows[name] == pytest.approx(means[variant, algorithm].tolist(), abs=1e-9)


def test_other_differences_still_divide_the_tables(tmp_path):
    write_grid(tmp_path / "short", [1, 2], steps=1)
    write_grid(tmp_path / "long", [1, 2], steps=2)
    results = collect(tmp_path, methods=["oracle"], by=["kl_weight"])

    titles = {table.setting: len(table.rows) for table in results.tables}
    assert titles == {"steps 1": 2, "steps 2": 2}

    both = collect(tmp_path, methods=["oracle"], by=["kl_weight", "steps"])
    assert {table.setting for table in both.tables} == {""}
    assert "CARFT (kl_weight 1, steps 2)" in rows_of(both)


def test_jobs_of_the_manifest_that_did_not_run_are_missed_in_their_row(tmp_path):
    grid = ['{"kl_weight": 3}', '{"kl_weight": 9}']
    collect_sweeps.launch(
        tmp_path,
        ("CARFT",),
        hparams=grid,
        run=lambda args: args["test_envs"] != [2] or args["hparams"] != grid[1],
    )
    results = collect(tmp_path, methods=["oracle"], by=["kl_weight"])
    first, second = results.tables[0].rows

    assert not any(cell.missing for cell in first.cells)
    assert [bool(cell.missing) for cell in second.cells] == [False, False, True, False]


def test_what_does_not_vary_is_refused_and_what_does_is_named(tmp_path, peers_emoji):
    write_grid(tmp_path, [1, 2])
    with pytest.raises(CarftError, match="--by lr: no algorithm has several.*kl_weight, variant"):
        collect(tmp_path, by=["lr"])
    with pytest.raises(CarftError, match="one that varies: wise_alpha, average, variant|average"):
        collect(peers_emoji, by=["lr"])

    collect_sweeps.write_sweep(tmp_path / "single", ["ERM"], choices=1)
    with pytest.raises(CarftError, match="leave --by out"):
        collect(tmp_path / "single", by=["kl_weight"])


def test_the_command_has_the_joint_table(tmp_path, capsys):
    write_grid(tmp_path, [1, 2])
    options = ["--select", "oracle", "--by", "kl_weight", "--against", "CARFT (kl_weight 1)"]
    assert cli.main(["collect", str(tmp_path), *options, "--format", "json"]) == 0

    sections = json.loads(capsys.readouterr().out)
    rows = [row["algorithm"] for row in sections["tables"][0]["rows"]]
    assert rows == ["CARFT (kl_weight 1)", "CARFT (kl_weight 2)"]
    assert {entry["algorithm"] for entry in sections["against"]} == {"CARFT (kl_weight 2)"}


def test_what_the_rows_tell_is_no_note(tmp_path):
    write_grid(tmp_path, [1, 2])
    assert not collect(tmp_path, methods=["oracle"], by=["kl_weight"]).notes


def launch_search(folder, values):
    """A launched search over kl_weight of which each member ran for all targets in two trials."""
    jobs = []
    for member, target, trial in itertools.product(range(len(values)), range(4), range(2)):
        hparams = {"kl_weight": values[member]}
        args = {
            "dataset": "PACS",
            "algorithm": "CARFT",
            "trial_seed": trial,
            "hparams_seed": 0,
            "test_envs": [target],
            "task": "t",
            "holdout_fraction": 0.2,
            "hparams": json.dumps(hparams),
        }
        role = job.Role(values=hparams, member=member)
        launched = job.Job(args, folder / job.identity(args), role=role)
        jobs.append(launched)
        facts = {**args, "recorded": hparams, "environments": list("ACPS")}
        collect_sweeps.write_job(folder, launched.folder.name, **facts)

    facts = {"PACS": manifest.Dataset(tuple("ACPS"), None, 5001, 300)}
    manifest.add(folder, manifest.Sweep(tuple(jobs), facts))
    return jobs


def test_a_search_lists_the_chosen_values_of_each_cell(tmp_path):
    values = [0.5, 3, 10]
    jobs = launch_search(tmp_path, values)
    best = {}
    for searched in jobs:
        records = [json.loads(line) for line in (searched.folder / "results.jsonl").open()]
        (target,) = searched.args["test_envs"]
        cell = (target, searched.args["trial_seed"])
        validation = records[-1][f"env{target}_out_acc"]
        best.setdefault(cell, []).append((validation, searched.role.member))
    chosen = {cell: values[max(members)[1]] for cell, members in best.items()}

    results = collect(tmp_path, methods=["oracle"], columns=["environments", "draws", "jobs"])
    (row,) = results.tables[0].rows
    assert {
        (target, entry.trial): entry.outcome.values["kl_weight"]
        for target in range(4)
        for entry in row.chosen(target)
    } == chosen
    assert [cell.mean for cell in row.printed_cells[-2:]] == [3, 24]

    grid = next(grid for grid in results.grids if "chosen" in grid.title)
    assert grid.header == ["Algorithm", "A", "C", "P", "S", "Of"]
    for target, text in enumerate(grid.rows[0][1:5]):
        for trial in range(2):
            assert f"kl_weight {chosen[target, trial]}" in text
    assert grid.rows[0][-1] == "3"

    (entry, *_) = results.as_dict()["tables"]
    of_cell = entry["rows"][0]["cells"][1]["chosen"]
    assert [trial["values"] for trial in of_cell] == [
        {"kl_weight": chosen[1, trial]} for trial in range(2)
    ]
    assert {trial["members"] for trial in of_cell} == {3}
