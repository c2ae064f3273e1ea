"""Calls of `train` in most shapes."""

from domainbed import datasets


def extend_hparams(hparams, args):
    return hparams


def make_dataset(args, hparams):
    return vars(datasets)[args.dataset](args.data_dir, args.test_envs, hparams)


def make_algorithm(algorithm_class, dataset, num_domains, hparams):
    return algorithm_class(dataset.input_shape, dataset.num_classes, num_domains, hparams)


def update(algorithm, minibatches, step):
    return algorithm.update(minibatches, None)
