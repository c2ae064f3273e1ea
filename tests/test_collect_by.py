"""``carft collect --by``: joint tables."""

import json

import collect_sweeps
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.results.collect import collect


def write_grid(folder, values, **options):
    """A variant of a sweep for each value of kl_weight; None leaves it at the default, 1."""
    for number, value in enumerate(values):
        collect_sweeps.write_sweep(
            folder / f"kl_weight={value}",
            ["CARFT"],
            choices=1,
            hparams=None if value is None else json.dumps({"kl_weight": value}),
            recorded={"kl_weight": 1.0 if value is None else value},
            seed=number,
            **options,
        )


def means_of_rows(table):
    return {row.algorithm: [cell.mean for cell in row.cells] for row in table.rows}


def test_values_of_a_hyperparameter_become_ordered_rows_of_one_table(tmp_path):
    write_grid(tmp_path, [10, None, 0.5])
    apart = collect(tmp_path, methods=["oracle"]).tables
    means = {table.setting: means_of_rows(table)["CARFT"] for table in apart if not table.averages}

    joint = collect(tmp_path, methods=["oracle"], by=["kl_weight"])
    table, averages = joint.tables
    assert averages.averages and not joint.notes
    assert list(means_of_rows(table).items()) == [
        ("CARFT (kl_weight 0.5)", means["hparam kl_weight 0.5"]),
        ("CARFT (kl_weight 1.0, the default)", means["hparam kl_weight default"]),
        ("CARFT (kl_weight 10)", means["hparam kl_weight 10"]),
    ]


def test_other_differences_still_divide_the_tables(tmp_path):
    write_grid(tmp_path / "short", [1, 2], steps=1)
    write_grid(tmp_path / "long", [1, 2], steps=2)
    results = collect(tmp_path, methods=["oracle"], by=["kl_weight"])
    rows_by_setting = {table.setting: len(table.rows) for table in results.tables}
    assert rows_by_setting == {"steps 1": 2, "steps 2": 2}

    table, _ = collect(tmp_path, methods=["oracle"], by=["kl_weight", "steps"]).tables
    assert len(table.rows) == 4 and "CARFT (kl_weight 1, steps 2)" in means_of_rows(table)


def test_declared_jobs_that_did_not_run_are_missing_in_their_row(tmp_path):
    grid = ['{"kl_weight": 3}', '{"kl_weight": 9}']
    collect_sweeps.launch(
        tmp_path,
        ("CARFT",),
        hparams=grid,
        run=lambda args: args["test_envs"] != [2] or args["hparams"] != grid[1],
    )
    table, _ = collect(tmp_path, methods=["oracle"], by=["kl_weight"]).tables
    first, second = ([bool(cell.missing) for cell in row.cells] for row in table.rows)
    assert not any(first)
    assert second == [False, False, True, False]


@pytest.mark.parametrize(
    ("values", "message"),
    [([1, 2], "--by lr: .* one that varies: kl_weight, variant"), ([1], "leave --by out")],
)
def test_a_name_that_does_not_vary_is_refused(tmp_path, values, message):
    write_grid(tmp_path, values)
    with pytest.raises(CarftError, match=message):
        collect(tmp_path, by=["lr"])
