"""Packages in place of modules, in a namespace package: SWAD, MIRO and their forks."""

from domainbed.algorithms.erm import ERM, Algorithm  # noqa: F401


def get_algorithm_class(algorithm_name):
    if algorithm_name not in globals():
        raise NotImplementedError(algorithm_name)
    return globals()[algorithm_name]
