def _hparams(algorithm, dataset, random_seed):
    return {"lr": (0.001, random_seed / 7), "class_balanced": (False, False)}


def default_hparams(algorithm, dataset):
    return {name: pair[0] for name, pair in _hparams(algorithm, dataset, 0).items()}


def random_hparams(algorithm, dataset, seed):
    return {name: pair[1] for name, pair in _hparams(algorithm, dataset, seed).items()}
