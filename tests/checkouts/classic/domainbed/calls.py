"""Calls of `train` that differ between shapes."""

from domainbed.usual_calls import extend_hparams, make_algorithm, make_dataset, update  # noqa: F401
