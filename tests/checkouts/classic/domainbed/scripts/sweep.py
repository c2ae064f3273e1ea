"""A job for each algorithm and left-out environment, as command lines for a launcher."""

import argparse
import hashlib
import shlex
from pathlib import Path

from domainbed import command_launchers


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
    commands = []
    for dataset in args.datasets:
        for algorithm in args.algorithms:
            for test_env in args.test_envs:
                job = [
                    "--algorithm", algorithm, "--dataset", dataset, "--test_envs", str(test_env),
                    "--data_dir", args.data_dir, "--hparams", args.hparams, "--steps", args.steps,
                ]  # fmt: skip
                folder = args.output_dir / hashlib.md5(str(job).encode()).hexdigest()
                job = ["python", "-m", "domainbed.scripts.train", *job, "--output_dir", str(folder)]
                commands.append(shlex.join(job))
    command_launchers.REGISTRY[args.command_launcher](commands)


if __name__ == "__main__":
    main()
