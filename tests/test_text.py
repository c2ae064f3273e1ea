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
        ("bs", HPARAMS, ["batch_size"]),
        ("lambda", HPARAMS, ["kl_weight"]),
        ("temperature", HPARAMS, ["context_scale"]),
        ("templates", HPARAMS, ["contexts"]),
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trails", "no key is called 'trails'; did you mean trials? Valid: trials"),
        ("metric", "no key is called 'metric'. Valid: trials"),
    ],
)
def test_an_unknown_name_is_followed_by_the_valid_ones(name, message):
    assert text.unknown("key", name, ["trials"]) == message
