"""A stand-in for train that waits some seconds, saves its state at a signal, and resumes later.

    python -m domainbed.scripts.train --output_dir DIR [--seconds 0.5] [--words TEXT] [--code CODE]

Like the train of a checkout, it does not use the lock. DIR/story has a line of JSON for each event.
The first line also describes the process.
"""

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import imported_by

TICK = 0.05


def describe_process() -> dict:
    lock = int(os.environ.get("DOMAINBED_LOCK_FD", 0))
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    ignored = re.compile(r"/proc/\d+/fd/(pipe:|\d)|/tmp/carft-job")
    return dict(
        argv=sys.argv,
        path=sys.path,
        cwd=os.getcwd(),
        environment={n: v for n, v in os.environ.items() if n != "DOMAINBED_LOCK_FD"},
        lock=os.readlink(f"/proc/self/fd/{lock}"),
        inherited=os.get_inheritable(lock),
        streams=[os.readlink(f"/proc/self/fd/{n}") for n in range(2)],
        opened=sorted(path for path in opened if not ignored.match(path)),
        signals={name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
        leader=os.getsid(0) == os.getpgid(0) == os.getpid(),
        main=(__name__, __spec__.name, sys.modules["__main__"].__dict__ is globals()),
        method=multiprocessing.get_start_method(allow_none=True),
        threads=len(os.listdir("/proc/self/task")),
        drawn=random.random(),
        imported_by=imported_by.PID,
        parent=os.getppid(),
    )


def main() -> None:
    flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    folder = Path(flags["--output_dir"])
    signals: list[int] = []

    def write_event(event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "time": time.time(), "pid": os.getpid(), **facts})
        with (folder / "story").open("ab", buffering=0) as file:  # one write per event
            file.write(line.encode() + b"\n")

    facts = describe_process()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: signals.append(number))
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    ticks = int(state.read_text()) if state.exists() else 0
    write_event("start", flags=flags, **facts)
    while ticks * TICK < float(flags.get("--seconds", 0)):
        time.sleep(TICK)
        ticks += 1
        if signals:
            state.write_text(str(ticks))
            write_event(f"saved for {signal.Signals(signals[0]).name}")
            sys.exit(75)
    print(flags.get("--words", ""), file=sys.stderr)
    exec(flags.get("--code", "pass"))
    write_event("end")
    (folder / "done").touch()


if __name__ == "__main__":
    main()
