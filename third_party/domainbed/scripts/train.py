"""Train one algorithm on one data set: `python -m domainbed.scripts.train --help`.

Flags, their defaults and the printed text are those of upstream file domainbed/scripts/train.py
at b93c22a; `--workers` is ours.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import numpy as np
import PIL
import torch
import torchvision

from domainbed.lib import checks, errors, misc, own_data, training


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="domainbed.scripts.train", description="Domain generalization"
    )
    parser.add_argument("--data_dir", help="folder that holds the data sets' folders")
    parser.add_argument(
        "--dataset", default="RotatedMNIST", type=own_data.spelled, help="a name, or a folder"
    )
    parser.add_argument("--algorithm", default="ERM")
    parser.add_argument("--task", default=checks.TASKS[0], choices=checks.TASKS)
    parser.add_argument("--hparams", help="JSON object of hyperparameters to set")
    parser.add_argument(
        "--test_envs", type=int, nargs="*", default=[0], help="none: train on all environments"
    )
    parser.add_argument("--output_dir", default="train_output")
    _add_seeds(parser)
    _add_amounts(parser)
    parser.add_argument("--skip_model_save", action="store_true")
    parser.add_argument("--save_model_every_checkpoint", action="store_true")
    return parser


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hparams_seed", type=int, default=0, help="draws the hyperparameters; 0 is the defaults"
    )
    parser.add_argument(
        "--trial_seed", type=int, default=0, help="draws the splits and the hyperparameters"
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds everything else")


def _add_amounts(parser: argparse.ArgumentParser) -> None:
    own = "default: the data set's own"
    parser.add_argument("--steps", type=int, help=own)
    parser.add_argument("--checkpoint_freq", type=int, help=f"steps between checkpoints; {own}")
    parser.add_argument("--holdout_fraction", type=float, default=0.2)
    parser.add_argument(
        "--uda_holdout_fraction",
        type=float,
        default=0,
        help="share of a test environment to use without labels in domain adaptation",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that load data, 0 for none; default: the data set's own number, at most "
        "one a CPU. Each draws its own augmentations: give a number to repeat a run elsewhere",
    )


def check(args: argparse.Namespace) -> None:
    """Raise a UsageError that lists everything wrong with the command line."""
    unknown_dataset = checks.dataset_problems(args.dataset)
    problems = checks.algorithm_problems(args.algorithm) + unknown_dataset
    if not unknown_dataset:
        problems += checks.test_envs_problems(args.dataset, args.test_envs)
        problems += checks.data_problems(args.dataset, args.data_dir)
    problems += checks.hparams_problems(args.hparams, args.algorithm, args.dataset)
    problems += checks.holdout_problems(args.holdout_fraction)
    problems += checks.fraction_problems("--uda_holdout_fraction", args.uda_holdout_fraction)
    for flag, least in (("steps", 0), ("checkpoint_freq", 0), ("workers", 0)):
        problems += checks.least_problems(f"--{flag}", getattr(args, flag), least)
    checks.require(problems)


def print_environment() -> None:
    """Print the versions that a result may depend on."""
    versions = {
        "Python": sys.version.split(" ")[0],
        "PyTorch": torch.__version__,
        "Torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda,
        "CUDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "NumPy": np.__version__,
        "PIL": PIL.__version__,
    }
    print("Environment:")
    for name, version in versions.items():
        print(f"\t{name}: {version}")


def run(args: argparse.Namespace) -> None:
    """Check, load, train."""
    check(args)
    print_environment()
    _print_sorted("Args:", vars(args))
    hparams = training.choose_hparams(args)
    _print_sorted("HParams:", hparams)
    training.seed_everything(args.seed)
    dataset, environments = training.load_environments(args, hparams)
    job = training.Run(args, hparams, dataset, environments)
    # Not among the arguments, whose names are upstream's, but augmentations depend on it.
    print(f"Workers: {job.n_workers}")
    job.train()


def _print_sorted(title: str, values: dict[str, object]) -> None:
    print(title)
    for name, value in sorted(values.items()):
        print(f"\t{name}: {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0; 1 after a failure; 2 after a wrong argument; 130 if interrupted, as a shell says it.
    """
    args = build_parser().parse_args(argv)
    os.makedirs(args.output_dir, exist_ok=True)
    with misc.tee_output(args.output_dir):
        try:
            run(args)
        except errors.UsageError as error:
            print(f"train: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("train: interrupted by Ctrl-C; the run is not done", file=sys.stderr)
            return 130
        except Exception:
            # Printed here, while err.txt is open: a sweep reports its last line.
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
