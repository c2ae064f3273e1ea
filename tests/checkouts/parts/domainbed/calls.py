"""`train` asks each algorithm for its accuracy on the batch, and steps its schedule each epoch."""

import torch
from domainbed import datasets


def own_hparams(hparams, args):
    return {**hparams, "optimizer": "Adam", "scheduler": "None", "arch": "resnet50"}


def make_dataset(args, hparams):
    return vars(datasets)[args.dataset](args.data_dir, args.test_envs, hparams)


def make_algorithm(algorithm_class, dataset, num_domains, hparams):
    algorithm = algorithm_class(dataset.input_shape, dataset.num_classes, num_domains, hparams)
    return algorithm.to("cpu")


def update(algorithm, minibatches, step):
    values = algorithm.update(minibatches)
    accuracy = values["train_acc"]
    algorithm.scheduler_step()

    features = algorithm.featurizer.eval()(minibatches[0][0])
    logits = algorithm.classifier(features)
    shares = [logits.argmax(1) == minibatches[0][1]]
    for x, y in minibatches[1:]:
        shares.append(algorithm.predict(x).argmax(1) == y)

    measured = torch.cat(shares).float().mean().item()
    algorithm.train()
    rate = algorithm.learning_rate()
    return {**values, "accuracy": accuracy, "measured_accuracy": measured, "rate": rate}
