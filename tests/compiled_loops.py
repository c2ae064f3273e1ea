"""Loads the loops that numba compiles, which takes a job longer than all of its steps."""

import torch

from domainbed_carft.pictures import stages
from domainbed_carft.pictures.protocols import plan_for

_PLAN = plan_for("domainbed", 1, augment=False)

stages.second_stage(_PLAN, torch.empty(0, 1, 1, 3, dtype=torch.uint8), torch.empty(0, 10))
