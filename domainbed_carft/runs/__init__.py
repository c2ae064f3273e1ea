"""Using a trained run: evaluate, predict, interpolate (WiSE-FT), average (soups), export.

The commands of `carft` and the Python API call the same functions. A function takes a run, or the
path of a job's folder or a weights file.
"""

from __future__ import annotations

from functools import partial

from domainbed_carft.lazy import import_attribute

# Images per batch, as in the harness's `train`: the last bits of a logit depend on the batch.
BATCH_SIZE = 64

# The exit status of a command that could not read some of the images.
SOME_SKIPPED = 3

__getattr__ = partial(import_attribute, __name__)
