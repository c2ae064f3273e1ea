"""Calls of `train` that differ from shape to shape."""

from domainbed.usual_calls import make_algorithm, make_dataset, own_hparams, update  # noqa: F401
