"""Registers the fake algorithms in every interpreter that finds this folder on its PYTHONPATH."""

import importlib.util
from pathlib import Path

from domainbed import algorithms

path = Path(__file__).resolve().parent.parent / "fakes.py"
spec = importlib.util.spec_from_file_location("fakes", path)
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)
for fake in fakes.ALL:
    setattr(algorithms, fake.__name__, fake)
    algorithms.ALGORITHMS.append(fake.__name__)
