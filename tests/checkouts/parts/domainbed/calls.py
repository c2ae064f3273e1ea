"""`train` reads the accuracy on the batch, steps the schedule, and averages the network."""

import copy

import torch
from domainbed.usual_calls import make_dataset  # noqa: F401

averages = []


def extend_hparams(hparams, args):
    return {**hparams, "optimizer": "Adam", "scheduler": "None", "ma_start_iter": 300}


def make_algorithm(algorithm_class, dataset, num_domains, hparams):
    sizes = (dataset.input_shape, dataset.num_classes, num_domains)
    algorithm = algorithm_class(*sizes, hparams, init_step=False, path_for_init=None).to("cpu")
    averages.append(copy.deepcopy(algorithm.network))
    return algorithm


def update(algorithm, minibatches, step):
    values = algorithm.update(minibatches)
    measured = {"accuracy": values["train_acc"], "rate": algorithm.learning_rate()}
    algorithm.scheduler_step()

    algorithm.eval()
    logits = [algorithm.classifier(algorithm.featurizer(x)) for x, _ in minibatches]
    hits = [each.argmax(1) == y for each, (_, y) in zip(logits, minibatches)]
    measured["measured_accuracy"] = torch.cat(hits).float().mean().item()

    (average,) = averages
    with torch.no_grad():
        for mean, parameter in zip(average.parameters(), algorithm.network.parameters()):
            mean.lerp_(parameter, 1.0 if step == 0 else 0.5)
        x = minibatches[0][0]
        gap = (average.eval()(x) - algorithm.predict(x)).abs().max().item()
    algorithm.train()
    return {**values, **measured, "gap_to_average": gap}
