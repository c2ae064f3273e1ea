"""Which items each split gets."""

from __future__ import annotations

import hashlib
import json

from domainbed.lib.preparation import split_environments


def numbers(split):
    """The numbers in a split, or if they are many their MD5, as in the golden file."""
    found = [number for number, _ in (split[i] for i in range(len(split)))]
    return found if len(found) <= 50 else hashlib.md5(json.dumps(found).encode()).hexdigest()


def test_splits_are_upstreams(golden):
    for case in golden("splits.json"):
        environments = split_environments(
            [[(number, 0) for number in range(size)] for size in case["sizes"]],
            case["test_envs"],
            case["trial_seed"],
            case["holdout_fraction"],
            case["uda_holdout_fraction"],
        )
        assert [numbers(environment.in_split) for environment in environments] == case["in"]
        assert [numbers(environment.out_split) for environment in environments] == case["out"]
        unlabeled = [e.uda_split for e in environments if len(e.uda_split)]
        assert [numbers(split) for split in unlabeled] == case["uda"]
