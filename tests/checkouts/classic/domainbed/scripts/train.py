"""One job: the data set and the algorithm get one hparams object, each checkpoint a record."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from domainbed import algorithms, calls, hparams_registry


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir")
    parser.add_argument("--dataset")
    parser.add_argument("--algorithm")
    parser.add_argument("--hparams", default="{}")
    parser.add_argument("--hparams_seed", type=int, default=0)
    parser.add_argument("--test_envs", type=int, nargs="+")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    if args.hparams_seed:
        hparams = hparams_registry.random_hparams(args.algorithm, args.dataset, args.hparams_seed)
    else:
        hparams = hparams_registry.default_hparams(args.algorithm, args.dataset)
    hparams = calls.own_hparams(hparams, args)
    hparams.update(json.loads(args.hparams))

    dataset = calls.make_dataset(args, hparams)
    torch.manual_seed(0)
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    num_domains = len(dataset) - len(args.test_envs)
    algorithm = calls.make_algorithm(algorithm_class, dataset, num_domains, hparams)

    loaders = [
        DataLoader(environment, batch_size=hparams["batch_size"], shuffle=True)
        for index, environment in enumerate(dataset)
        if index not in args.test_envs
    ]

    for step in range(args.steps):
        values = calls.update(algorithm, [next(iter(loader)) for loader in loaders], step)
        record = {"step": step, **{name: np.mean([value]) for name, value in values.items()}}
        for index, environment in enumerate(dataset):
            share = accuracy(algorithm, environment)
            record[f"env{index}_in_acc"] = record[f"env{index}_out_acc"] = share

        record["hparams"] = dict(hparams)
        record["args"] = {**vars(args), "output_dir": str(args.output_dir)}
        with (args.output_dir / "results.jsonl").open("a") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")

    (args.output_dir / "done").write_text("done")


def accuracy(algorithm, environment) -> float:
    algorithm.eval()
    with torch.no_grad():
        shares = [
            (algorithm.predict(x).argmax(1) == y).float().mean().item()
            for x, y in DataLoader(environment, batch_size=64)
        ]

    algorithm.train()
    return sum(shares) / len(shares)


if __name__ == "__main__":
    main()
