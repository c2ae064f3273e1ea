"""Packages in place of modules, and none around them: SWAD, MIRO and what grew from them."""

from domainbed.algorithms.erm import ERM, Algorithm  # noqa: F401


def get_algorithm_class(algorithm_name):
    if algorithm_name not in globals():
        raise NotImplementedError(algorithm_name)
    return globals()[algorithm_name]
