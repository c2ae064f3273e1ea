"""A stand-in for train: ticks through its seconds, saves itself when told to stop, goes on later.

    python fake_train.py --output_dir DIR [--seconds 0.5] [--status N] [--words TEXT]

It knows as little of the lock as a foreign DomainBed's train. What it did is in DIR/story, a line
of JSON for each event.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

TICK = 0.05


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--hparams", default="")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--words", default="")
    args = parser.parse_args()
    folder = Path(args.output_dir)
    told = []

    def tell(event: str) -> None:
        names = ("OMP_NUM_THREADS", "DOMAINBED_CORES", "CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY")
        threads, cores, gpu, waits = map(os.environ.get, names)
        line = dict(event=event, time=time.time(), pid=os.getpid(), threads=threads, cores=cores,
                    gpu=gpu, waits=waits, hparams=args.hparams)  # fmt: skip
        with open(folder / "story", "a") as file:
            file.write(json.dumps(line) + "\n")

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: told.append(number))
    state = folder / "state"
    ticks = int(state.read_text()) if state.exists() else 0
    tell("start")
    while ticks * TICK < args.seconds:
        time.sleep(TICK)
        ticks += 1
        if told:
            state.write_text(str(ticks))
            tell(f"saved for {signal.Signals(told[0]).name}")
            return 75
    if args.words:
        print(args.words, file=sys.stderr)
    tell("end")
    if args.status == 0:
        (folder / "done").write_text("done")
    return args.status


if __name__ == "__main__":
    sys.exit(main())
