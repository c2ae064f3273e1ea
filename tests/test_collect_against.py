"""``carft collect --against``, against scipy and enumeration on packed records."""

import itertools
import json
from dataclasses import replace

import collect_sweeps
import numpy as np
import packed_records
import pytest
import scipy

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Role, identity
from domainbed_carft.results import collection, comparisons
from domainbed_carft.results.collect import collect

REFERENCE = "CARFT (methods)"


@pytest.fixture(scope="session")
def results(peers_emoji):
    """Every row against CARFT, with what a difference of a point needs."""
    return collect(
        peers_emoji,
        methods=["training-domain"],
        columns=["out-of-domain", "in-domain"],
        by=["variant"],
        against=REFERENCE,
    )


@pytest.fixture(scope="session")
def differences(selected):
    """(Row, measure) -> a frame of CARFT's differences: an environment a row, a trial a column."""
    by_row = dict(list(selected.groupby(["variant", "algorithm"])))
    reference = by_row.pop(("methods", "CARFT"))

    found = {}
    for (variant, algorithm), jobs in by_row.items():
        name = packed_records.row_name(variant, algorithm)
        for measure, column in (("accuracy", "out"), ("in-domain", "in")):
            ours, theirs = (
                frame.pivot_table(index="target", columns="trial", values=column)
                for frame in (jobs, reference)
            )
            found[name, measure] = (ours - theirs).round(11)
    return found


def share_of_ties(values):
    """The share of all sign flips, but for the values and their opposite, of the same sum."""
    flips = itertools.product((1, -1), repeat=len(values))
    sums = np.array([np.dot(signs, values) for signs in flips])
    return (np.sum(np.abs(np.abs(sums) - abs(np.sum(values))) < 1e-9) - 2) / len(sums)


def enumerated_p(values):
    """The share of all 2^n sign flips with a sum at least as far from 0, by counting them."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return np.mean(np.abs(sums) >= abs(np.sum(values)) - 1e-9)


def test_differences_intervals_and_p_values_are_those_of_scipy(results, differences):
    entries = {(e.algorithm, e.measure, e.unit): e for e in results.comparisons_against}
    assert len(entries) == 2 * len(differences) == 2 * 2 * 21

    for (name, measure), frame in differences.items():
        units = {"environment": frame.mean(axis=1).to_numpy(), "pair": frame.to_numpy().ravel()}
        for unit, values in units.items():
            entry = entries[name, measure, unit]
            interval = scipy.stats.t.interval(
                0.95, len(values) - 1, values.mean(), scipy.stats.sem(values)
            )
            assert entry.mean_difference == pytest.approx(values.mean(), abs=1e-9)
            assert entry.standard_error == pytest.approx(scipy.stats.sem(values), abs=1e-9)
            assert (entry.low, entry.high) == pytest.approx(interval, abs=1e-7)

            signs = np.sign(values.round(9)).tolist()
            counts = (entry.wins, entry.losses, entry.ties)
            assert counts == (signs.count(1), signs.count(-1), signs.count(0))
            assert (entry.n, entry.pairs) == (len(values), 20)
            assert entry.smallest_p == 2 / 2 ** len(values)

            assert entry.p == pytest.approx(enumerated_p(values), abs=1e-9)
            if unit == "environment":
                test = scipy.stats.permutation_test(
                    (values,), np.mean, permutation_type="samples", n_resamples=np.inf
                )
                # scipy takes equal sums that rounding parts for smaller ones, and counts them not.
                ties = share_of_ties(values)
                assert entry.p - ties - 1e-9 <= test.pvalue <= entry.p + 1e-9


def test_p_values_are_corrected_over_the_rows_of_a_table(results):
    tables = results.against.groupby(["measure", "unit"])
    assert len(tables) == 4
    for _, rows in tables:
        table = rows.sort_values("p")
        assert len(table) == 21

        factors = np.arange(21, 0, -1)
        expected = np.minimum(1, np.maximum.accumulate(factors * table["p"].to_numpy()))
        assert table["p_holm"].to_numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
def test_sign_flips_are_scipys(n):
    draw = np.random.default_rng(n)
    for values in (draw.normal(0.3, 1, size=n), draw.integers(-2, 3, size=n), np.zeros(n)):
        assert comparisons.p_value(values) == pytest.approx(enumerated_p(values), abs=1e-12)
        if n > 1:
            test = scipy.stats.permutation_test(
                (values,), np.mean, permutation_type="samples", n_resamples=np.inf
            )
            assert comparisons.p_value(values) == pytest.approx(test.pvalue, abs=1e-12)


def test_many_differences_are_flipped_at_random():
    values = np.random.default_rng(0).normal(0.25, 1, size=60)
    p = comparisons.p_value(values)
    normal = 2 * scipy.stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))

    assert p == pytest.approx(normal, abs=0.005)
    assert comparisons.p_value(np.ones(60)) == comparisons.smallest_p(60) == 1e-5


def test_what_few_environments_cannot_show_is_said(results):
    environments, pairs, *_ = [grid for grid in results.grids if grid.title.startswith("Minus")]
    assert environments.title.startswith(f"Minus {REFERENCE}; unit: environment")
    assert environments.notes == [
        "With n = 4 environments no p-value is below 0.125: read the difference and the wins."
    ]
    assert "optimistic" in pairs.title
    assert [row[10] for row in environments.rows] == ["0.125"] * 21


def test_fewer_than_five_pairs_have_no_p_value(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM"], trials=1)
    options = ["--select", "oracle", "--against", "CARFT"]

    assert cli.main(["collect", str(tmp_path), *options, "--format", "json"]) == 0
    sections = json.loads(capsys.readouterr().out)
    assert [entry["p"] for entry in sections["against"]] == [None, None]
    assert [entry["pairs"] for entry in sections["against"]] == [4, 4]
    assert all(entry["mean_difference"] for entry in sections["against"])

    assert cli.main(["collect", str(tmp_path), *options]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("expected at least 5 for a p-value") == 1  # not by environment
    assert "ERM: 4 (data set, environment left out, trial) shared with CARFT, expected" in text
    assert text.count("With n = 4 environments no p-value is below 0.125") == 1


@pytest.mark.parametrize("left_out", [[], [0, 1, 3]], ids=["nothing", "several together"])
def test_trials_are_the_units_where_one_model_has_all_environments(left_out, tmp_path):
    folders = {}
    for algorithm, trial in itertools.product(("CARFT", "ERM"), range(3)):
        folders[algorithm, trial] = collect_sweeps.write_job(
            tmp_path,
            identity({"algorithm": algorithm, "trial": trial}),
            algorithm=algorithm,
            test_envs=left_out,
            trial_seed=trial,
        )
    if left_out:
        role = Role(leaves_out_together=True)
        jobs = [replace(run.job, role=role) for run in collection.gather(tmp_path).runs]
        manifest.add(tmp_path, manifest.Sweep(tuple(jobs)))
    method = "oracle" if left_out else "in-domain"
    results = collect(tmp_path, methods=[method], against="ERM")

    split = "in" if left_out else "out"
    percent = {
        key: 100 * np.mean([last[f"env{env}_{split}_acc"] for env in left_out or range(4)])
        for key, job in folders.items()
        for last in [json.loads((job / "results.jsonl").read_text().splitlines()[-1])]
    }
    differences = [percent["CARFT", trial] - percent["ERM", trial] for trial in range(3)]
    interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval()

    (entry,) = results.comparisons_against
    assert (entry.unit, entry.n) == ("trial", 3)
    assert entry.mean_difference == pytest.approx(np.mean(differences))
    assert (entry.low, entry.high) == pytest.approx(interval)


def test_few_pairs_are_noted_once_a_table(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM", "Mixup", "MMD", "SagNet"], trials=1)
    grids = collect(tmp_path, methods=["oracle"], against="CARFT").grids
    environments, pairs = (grid for grid in grids if grid.title.startswith("Minus"))
    assert [note.split(" no ")[0] for note in environments.notes] == ["With n = 4 environments"]
    assert [note.split(":")[0] for note in pairs.notes] == ["ERM, MMD, Mixup, SagNet"]


def test_an_algorithm_that_shares_no_pair_is_refused(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM"])
    with pytest.raises(CarftError, match="--against CAFRT.*expected one of CARFT, ERM"):
        collect(tmp_path, against="CAFRT")


def test_erm_among_runs_of_clip_is_told_from_plain_fine_tuning(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "CLIPFineTune"])
    with pytest.raises(CarftError, match="ERM is DomainBed's ResNet; .* of CLIP is CLIPFineTune"):
        collect(tmp_path, against="ERM")


def test_csv_has_one_of_the_tables(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM"])
    csv = ["collect", str(tmp_path), "--select", "oracle", "--format", "csv", "--against", "CARFT"]
    assert cli.main(csv) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("setting,selection,measure,unit,algorithm,against,pairs,n,")
    assert len(lines) == 2

    assert cli.main([*csv, "--columns", "all"]) == 1
    assert "use either --columns or --against" in capsys.readouterr().err
