"""The names of the selection rules, for modules that must not import numpy."""

from __future__ import annotations

TRAINING_DOMAIN = "training-domain"
LEAVE_ONE_OUT = "leave-one-domain-out"
ORACLE = "oracle"
IN_DOMAIN = "in-domain"
CLIPOOD = "clipood"

RULE_NAMES = (TRAINING_DOMAIN, LEAVE_ONE_OUT, ORACLE, IN_DOMAIN, CLIPOOD)
