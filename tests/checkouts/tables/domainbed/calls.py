"""Constructors and `update` get keyword arguments, and `train` saves the network."""

from domainbed.usual_calls import extend_hparams, make_dataset  # noqa: F401


def make_algorithm(algorithm_class, dataset, num_domains, hparams):
    algorithm = algorithm_class(
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        hparams=hparams,
        trained_part="all",
        path_init="",
        featurizers={},
    )
    assert algorithm.trained_part == "all"
    return algorithm


def update(algorithm, minibatches, step):
    values = algorithm.update(minibatches, unlabeled=None, step=step, epoch=0.5)
    weights = sum(tensor.numel() for tensor in algorithm.network.state_dict().values())
    return {**values, "saved_weights": weights}
