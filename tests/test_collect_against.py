"""``carft collect --against``, compared with scipy and enumeration on packed records."""

import itertools

import collect_sweeps
import numpy as np
import packed_records
import pytest
import scipy

from domainbed_carft.errors import CarftError
from domainbed_carft.results import comparisons
from domainbed_carft.results.collect import collect

REFERENCE = "CARFT (methods)"


@pytest.fixture(scope="module")
def results(peers_emoji):
    return collect(
        peers_emoji,
        methods=["training-domain"],
        columns=["out-of-domain", "in-domain"],
        by=["variant"],
        against=REFERENCE,
    )


def enumerated_p(values):
    """Count the share of all 2^n sign patterns with a sum at least as far from 0."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return np.mean(np.abs(sums) >= abs(np.sum(values)) - 1e-9)


def test_differences_intervals_and_p_values_equal_scipy(results, selected):
    entries = {(e.algorithm, e.measure, e.unit): e for e in results.comparisons_against}
    assert len(entries) == 2 * 2 * 21

    jobs_by_row = dict(list(selected.groupby(["variant", "algorithm"])))
    reference = jobs_by_row.pop(("methods", "CARFT"))
    columns = (("accuracy", "out"), ("in-domain", "in"))
    for (row, jobs), (measure, column) in itertools.product(jobs_by_row.items(), columns):
        values, reference_values = (
            frame.pivot_table(index="target", columns="trial", values=column)
            for frame in (jobs, reference)
        )
        differences = (values - reference_values).round(11)
        values_of_units = {
            "environment": differences.mean(axis=1).to_numpy(),
            "pair": differences.to_numpy().ravel(),
        }
        for unit, values in values_of_units.items():
            entry = entries[packed_records.row_name(*row), measure, unit]
            error = scipy.stats.sem(values)
            interval = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), error)
            assert entry.mean_difference == pytest.approx(values.mean(), abs=1e-9)
            assert entry.average_difference == pytest.approx(values.mean(), abs=1e-9)
            assert entry.standard_error == pytest.approx(error, abs=1e-9)
            assert (entry.low, entry.high) == pytest.approx(interval, abs=1e-7)
            assert entry.is_clear == (interval[0] > 0 or interval[1] < 0)

            signs = np.sign(values.round(9)).tolist()
            counts = (entry.wins, entry.losses, entry.ties)
            assert counts == (signs.count(1), signs.count(-1), signs.count(0))
            assert (entry.n, entry.pairs) == (len(values), 20)
            assert (entry.environments, entry.trials) == (4, 5)
            exact_p = enumerated_p(values)
            is_exact = unit == "environment"
            assert entry.smallest_p == (2 / 2**4 if is_exact else 1e-5)
            standard_error = 0 if is_exact else np.sqrt(exact_p * (1 - exact_p) / 100_000)
            assert entry.p == pytest.approx(exact_p, abs=1e-9 + 5 * standard_error)


def test_p_values_are_corrected_for_the_rows_of_a_table(results):
    tables = results.against.groupby(["measure", "unit"])
    assert len(tables) == 4
    for _, rows in tables:
        table = rows.sort_values("p")
        expected = np.minimum(1, np.maximum.accumulate(np.arange(21, 0, -1) * table["p"]))
        assert table["p_holm"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 13, 16])
def test_p_values_of_few_differences_equal_an_enumeration(n):
    draw = np.random.default_rng(n)
    # Tenths, of which many sign patterns have sums that are equal but for rounding.
    for values in (draw.normal(0.3, 1, size=n), draw.integers(-2, 3, size=n) / 10, np.zeros(n)):
        assert comparisons.p_value(values) == pytest.approx(enumerated_p(values), abs=1e-12)
    assert comparisons.p_value(np.ones(n)) == comparisons.smallest_p(n) == 2 / 2**n


def test_p_value_of_many_differences_is_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(0.25, 1, size=60)
    normal = 2 * scipy.stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))
    assert comparisons.p_value(values) == pytest.approx(normal, abs=0.005)
    assert comparisons.p_value(np.ones(60)) == comparisons.smallest_p(60) == 1e-5


def compare(unit, n_environments, n_trials):
    """Compare B and C with A on random accuracies; return the comparisons and the accuracies."""
    draw = np.random.default_rng(0)
    pairs = [("PACS", *pair) for pair in np.ndindex(n_environments, n_trials)]
    accuracies = {row: {pair: draw.uniform(50, 90) for pair in pairs} for row in "ABC"}
    return comparisons.compare(accuracies, "A", unit), accuracies


def test_few_pairs_have_no_p_value_and_a_note():
    entries, _ = compare("pair", 4, 1)
    assert [(entry.p, entry.p_holm, entry.pairs) for entry in entries] == [(None, None, 4)] * 2
    (note,) = comparisons.grids(entries)[0].notes
    assert note.startswith("B, C: 4 (") and "shared with A, expected at least 5" in note
    assert all(entry.p and entry.p_holm for entry in compare("pair", 5, 1)[0])


def test_one_environment_has_no_interval():
    (entry, _), _ = compare("environment", 1, 3)
    assert (entry.low, entry.standard_error, entry.n) == (None, None, 1)
    assert entry.interval_text(digits=1) == "none (one environment)"


@pytest.mark.parametrize("n", [2, 3])
def test_trial_differences_are_means_over_environments(n):
    (entry, _), accuracies = compare("trial", 4, n)
    second, first = (np.reshape([*accuracies[row].values()], (4, n)).mean(axis=0) for row in "BA")
    interval = scipy.stats.ttest_rel(second, first).confidence_interval()
    assert (entry.low, entry.high) == pytest.approx(interval)
    assert entry.n == n


def test_unit_is_the_trial_if_no_environment_is_held_out(tmp_path):
    for algorithm in ("CARFT", "ERM"):
        collect_sweeps.write_job(tmp_path, algorithm, algorithm=algorithm, test_envs=[])
    (entry,) = collect(tmp_path, methods=["in-domain"], against="ERM").comparisons_against
    assert entry.unit == "trial"


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("CAFRT", "--against CAFRT.*expected one of CARFT, CLIPFineTune"),
        ("ERM", "ERM is an algorithm of DomainBed, .* of CLIP is CLIPFineTune"),
    ],
)
def test_against_fails_if_no_row_shares_a_pair(tmp_path, algorithm, message):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "CLIPFineTune"])
    with pytest.raises(CarftError, match=message):
        collect(tmp_path, against=algorithm)


def test_trials_of_several_datasets_are_separate_units():
    draw = np.random.default_rng(1)
    pairs = [(name, *pair) for name in ("PACS", "VLCS") for pair in np.ndindex(4, 3)]
    accuracies = {row: {pair: draw.uniform(50, 90) for pair in pairs} for row in "AB"}
    (entry,) = comparisons.compare(accuracies, "A", "trial")
    second, first = (
        np.reshape([accuracies[row][pair] for pair in pairs], (2, 4, 3)).mean(axis=1).ravel()
        for row in "BA"
    )
    assert entry.n == 6
    interval = scipy.stats.ttest_rel(second, first).confidence_interval()
    assert (entry.low, entry.high) == pytest.approx(interval)


def test_note_on_the_smallest_p_value_is_about_the_row_with_the_fewest_units():
    pairs = [("PACS", *pair) for pair in np.ndindex(8, 1)]
    accuracies = {row: dict.fromkeys(pairs, 50.0 + number) for number, row in enumerate("AB")}
    accuracies["C"] = dict.fromkeys(pairs[:5], 53.0)
    entries = comparisons.compare(accuracies, "A", "environment")
    assert [entry.n for entry in entries] == [8, 5]
    (note,) = comparisons.grids(entries)[0].notes
    assert note.startswith("With n = 5 environments no p-value is below 0.062")
