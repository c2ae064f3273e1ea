"""The query list."""

import math

import pytest
from domainbed.lib.query import Q, make_selector_fn

PEOPLE = Q(
    [
        {"name": "Ada", "job": {"title": "poet", "pay": 3}},
        {"name": "Bo", "job": {"title": "smith", "pay": 5}},
        {"name": "Cy", "job": {"title": "poet", "pay": 4}},
    ]
)


def test_query_selects_and_groups_in_stable_order():
    assert make_selector_fn("name, job.pay")(PEOPLE[0]) == ("Ada", 3)
    assert make_selector_fn(lambda person: len(person["name"]))(PEOPLE[0]) == 3
    groups = PEOPLE.group("job.title").map(lambda title, people: (title, people.select("name")))
    assert groups == [("poet", ["Ada", "Cy"]), ("smith", ["Bo"])]
    assert PEOPLE.group_map("job.title", lambda title, people: len(people)) == [2, 1]


def test_query_computes_statistics_and_filters():
    numbers = Q([5, -3, 10, 8])
    assert (numbers.min(), numbers.max(), numbers.sum(), numbers.len()) == (-3, 10, 20, 4)
    assert numbers.mean_std() == (5, pytest.approx(math.sqrt(24.5)))
    assert Q([(1, "a"), (2, "b"), (2, "c")]).argmax(lambda pair: pair[0]) == (2, "b")
    assert PEOPLE.filter_equals("job.title", "smith").select("name") == ["Bo"]
    assert Q([1, None, 2]).filter_not_none() == [1, 2]
    assert Q([1.0, math.nan]).filter_not_nan() == [1.0]
