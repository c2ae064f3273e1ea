"""Print the number of jobs and the mean accuracy on the target, per algorithm."""

import argparse
import json
from collections import defaultdict
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input_dir", type=Path)
    args = parser.parse_args()

    targets = defaultdict(list)
    for path in args.input_dir.glob("*/results.jsonl"):
        record = json.loads(path.read_text().splitlines()[-1])
        target = record["args"]["test_envs"][0]
        targets[record["args"]["algorithm"]].append(record[f"env{target}_in_acc"])
    for algorithm, accuracies in sorted(targets.items()):
        print(algorithm, len(accuracies), sum(accuracies) / len(accuracies))


if __name__ == "__main__":
    main()
