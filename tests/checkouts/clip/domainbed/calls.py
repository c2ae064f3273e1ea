"""`train` adds hparams for its algorithms, and replaces a function of the registry."""

from domainbed import hparams_registry
from domainbed.usual_calls import make_algorithm, make_dataset, update  # noqa: F401


def default_hparams(algorithm, dataset):
    values = hparams_registry._hparams(algorithm, dataset, 0)
    return {"lr": 5e-5, **{name: default for name, (default, _) in values.items()}}


hparams_registry.default_hparams = default_hparams


def extend_hparams(hparams, args):
    return {**hparams, "test_envs": args.test_envs, "clip_transform": True}
