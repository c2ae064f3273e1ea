"""Use a trained run: evaluate, predict, interpolate (WiSE-FT), average (soups), export.

The `carft` commands and the Python API call the same functions, which accept a run, or the path of
a job's folder or of a weights file.
"""

from __future__ import annotations

from functools import partial

from domainbed_carft.lazy import import_attribute

# Images per batch, equal to the harness's `train`: the last bits of a logit depend on the batch.
BATCH_SIZE = 64

# Formats of `carft export`.
EXPORT_FORMATS = ("original", "transformers")

# Exit status of a command that could not read some of the images.
SOME_SKIPPED = 3

__getattr__ = partial(import_attribute, __name__)
