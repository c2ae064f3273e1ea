"""Near misses and synonyms: which name a message proposes."""

import pytest

from domainbed_carft import text
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms

HPARAMS = [*algorithms.hparams_of("CARFT")]
KEYS = ["algorithms", "compare_with", "datasets", "hparams", "name", "steps", "trials"]


@pytest.mark.parametrize(
    ("name", "valid", "expected"),
    [
        ("learning_rate", HPARAMS, ["lr"]),
        ("learning-rate", HPARAMS, ["lr"]),
        ("lambda", HPARAMS, ["kl_weight"]),
        ("temperature", HPARAMS, ["context_scale"]),
        ("epochs", HPARAMS, []),
        ("epochs", KEYS, ["steps"]),
        ("metric", KEYS, []),
        ("learning_rate", KEYS, []),
        ("MIRO", ALGORITHMS, ["CLIPMIRO"]),
        ("CAR-FT", ALGORITHMS, ["CARFT"]),
        ("WiSE-FT", ALGORITHMS, ["CLIPWiSEFT"]),
    ],
)
def test_similar_names_and_synonyms_are_suggested(name, valid, expected):
    assert text.near(name, valid) == expected


def test_every_synonym_stands_for_an_hparam_an_algorithm_or_a_key_of_a_sweep():
    from domainbed_carft.sweep.declaration import Shape

    valid_names = {*HPARAMS, *ALGORITHMS, *Shape.model_fields}
    assert {*text._SYNONYMS.values()} <= valid_names and not text._SYNONYMS.keys() & valid_names


def test_messages_end_with_a_full_stop():
    assert text.unknown("key", "trails", ["trials"]).startswith(
        "no key is called 'trails'; did you mean trials? Valid: "
    )
    assert text.unknown("key", "metric", ["trials"]) == ("no key is called 'metric'. Valid: trials")
