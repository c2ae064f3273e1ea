"""Alignment scores that mean something, for those who must not wait for what computes with them.

Of arXiv 2412.02856: what divides pictures in and out of pre-training, below which score a label is
taken to be wrong, and above which one the picture to show the name of its class.
"""

from __future__ import annotations

THRESHOLD = 0.21
LOWEST = 0.15
HIGHEST = 0.4
