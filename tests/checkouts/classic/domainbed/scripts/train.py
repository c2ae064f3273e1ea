"""One job: dataset and algorithm get the same hparams object, and each step is recorded."""

import argparse
import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from domainbed import algorithms, calls, hparams_registry


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("algorithm", "dataset", "data_dir", "output_dir", "hparams"):
        parser.add_argument(f"--{name}", default="{}")
    parser.add_argument("--test_envs", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    default_hparams = hparams_registry.default_hparams(args.algorithm, args.dataset)
    hparams = calls.extend_hparams(default_hparams, args)
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
        record = {"step": step, **values, "hparams": dict(hparams), "args": vars(args)}
        for index, environment in enumerate(dataset):
            record[f"env{index}_in_acc"] = accuracy(algorithm, environment)
        with (folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    (folder / "done").write_text("done")


def accuracy(algorithm, environment) -> float:
    algorithm.eval()
    x, y = next(iter(DataLoader(environment, batch_size=64)))
    with torch.no_grad():
        share = (algorithm.predict(x).argmax(1) == y).float().mean().item()
    algorithm.train()
    return share


if __name__ == "__main__":
    main()
