"""Constructors get two arguments more, and `train` averages the network of each algorithm: 2024."""

import copy

import torch
from domainbed import datasets

averages = []


def own_hparams(hparams, args):
    return {**hparams, "ma_start_iter": 300, "lastlrfac": 1.0}


def make_dataset(args, hparams):
    return vars(datasets)[args.dataset](args.data_dir, args.test_envs, hparams)


def make_algorithm(algorithm_class, dataset, num_domains, hparams):
    sizes = (dataset.input_shape, dataset.num_classes, num_domains)
    algorithm = algorithm_class(*sizes, hparams, init_step=False, path_for_init=None)
    averages.append(copy.deepcopy(algorithm.network))
    return algorithm


def update(algorithm, minibatches, step):
    values = algorithm.update(minibatches, None)
    (average,) = averages
    with torch.no_grad():
        pairs = zip(average.parameters(), algorithm.network.parameters(), strict=True)
        for mean, parameter in pairs:
            mean.lerp_(parameter, 1.0 if step == 0 else 0.5)

        x = minibatches[0][0]
        algorithm.eval()
        gap = (average.eval()(x) - algorithm.predict(x)).abs().max().item()
        algorithm.train()
    return {**values, "gap_to_average": gap}
