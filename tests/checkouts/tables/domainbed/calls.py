"""`update` gets more by keyword than an algorithm may want."""

from domainbed import datasets


def own_hparams(hparams, args):
    return hparams


def make_dataset(args, hparams):
    return datasets.get_dataset_class(args.dataset)(args.data_dir, args.test_envs, hparams)


def make_algorithm(algorithm_class, dataset, num_domains, hparams):
    return algorithm_class(dataset.input_shape, dataset.num_classes, num_domains, hparams)


def update(algorithm, minibatches, step):
    return algorithm.update(minibatches, unlabeled=None, step=step, epoch=0.5)
