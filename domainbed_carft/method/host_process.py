"""The process that a host trains in: whether it is our harness."""

from __future__ import annotations


def in_our_harness() -> bool:
    """Whether the domainbed in use is this package's harness."""
    from domainbed.algorithms import Algorithm

    return hasattr(Algorithm, "indivisible")
