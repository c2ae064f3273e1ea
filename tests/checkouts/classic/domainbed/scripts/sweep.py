"""Launch command lines of a job for each algorithm and target."""

import argparse
import hashlib
import itertools
import shlex
from pathlib import Path

from domainbed import command_launchers


def make_command(args, dataset: str, algorithm: str, test_env: int) -> str:
    flags = ["--algorithm", algorithm, "--dataset", dataset, "--test_envs", str(test_env)]
    flags += ["--data_dir", args.data_dir, "--hparams", args.hparams, "--steps", args.steps]
    folder = args.output_dir / hashlib.md5(str(flags).encode()).hexdigest()
    words = ["python", "-m", "domainbed.scripts.train", *flags, "--output_dir", str(folder)]
    return shlex.join(words)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["launch"])
    parser.add_argument("--algorithms", nargs="+")
    parser.add_argument("--datasets", nargs="+")
    parser.add_argument("--test_envs", type=int, nargs="+")
    parser.add_argument("--data_dir")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--command_launcher")
    parser.add_argument("--hparams", default="{}")
    parser.add_argument("--steps", default="2")
    args = parser.parse_args()

    jobs = itertools.product(args.datasets, args.algorithms, args.test_envs)
    commands = [make_command(args, *job) for job in jobs]
    command_launchers.REGISTRY[args.command_launcher](commands)


if __name__ == "__main__":
    main()
