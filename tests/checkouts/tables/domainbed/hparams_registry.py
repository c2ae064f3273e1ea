"""A table with the hparams of the host's algorithms, without pairs and `_hparams`."""

_TABLE = {"ERM": {"data_augmentation": True, "batch_size": 32, "nonlinear_classifier": False}}


def default_hparams(algorithm_name, dataset_name):
    return dict(_TABLE[algorithm_name])


def random_hparams(algorithm_name, dataset_name, hparams_seed):
    return {**_TABLE[algorithm_name], "batch_size": 8 + hparams_seed % 8}
