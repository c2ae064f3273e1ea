"""The worst day, at random: kills, signals, damaged files, full disks, three launchers at once.

    python benchmarks/hostile.py [--minutes 10] [--seed N] [--only kills signals ...]

Each round draws one attack and checks the promise of SECURITY.md that it is aimed at: a run that
was disturbed equals the undisturbed one to the bit, a job is trained once, and a damaged file ends
in one line, without a traceback, an escape on the terminal or a file outside. The first broken
promise is printed with its seed, and the status is 1. `make test` has a small case of each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

STEPS = 30
HPARAMS = {"batch_size": 4, "total_steps": STEPS, "warmup_steps": 2}
JOB = [
    *("--algorithm", "CARFT", "--dataset", "EmojiStyles", "--test_envs", "0"),
    *("--steps", str(STEPS), "--checkpoint_freq", "10", "--hparams", json.dumps(HPARAMS)),
]
SWEEP = {
    "name": "hostile", "datasets": ["EmojiStyles"], "trials": 1, "steps": 3,
    "algorithms": ["CLIPZeroShot", "CLIPLinearProbe"],
    "hparams": {**HPARAMS, "total_steps": 3, "warmup_steps": 1},
}  # fmt: skip
ESCAPE = "\x1b]0;owned\x07\u202e"
PARTING = (0, 1, 2, 3, 74, 75, 130)  # the exit statuses that the documentation knows


class Broken(AssertionError):
    """A promise that was not kept."""


def start(*words: str, **more: object) -> subprocess.Popen[str]:
    """One of our commands, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True, errors="surrogateescape", **more,  # type: ignore[call-overload]
    )  # fmt: skip


def train(folder: Path, workers: int = 0) -> subprocess.Popen[str]:
    """The job that is disturbed."""
    more = ["--workers", str(workers), "--output_dir", str(folder)]
    return start("-m", "domainbed.scripts.train", *JOB, *more)


def carft(*words: str) -> tuple[int, str]:
    """Exit status and all output of a `carft` command; Broken for what no user should see."""
    process = start("-m", "domainbed_carft", *words)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise Broken(f"carft {' '.join(words)} did not end within 300 s") from None
    said = out + err
    require("Traceback" not in said, f"carft {' '.join(words)}: {err[-2000:]}")
    require(not set("\x1b\x07\u202e") & set(said), f"carft {' '.join(words)}: a raw escape")
    require(process.returncode in PARTING, f"carft {' '.join(words)}: {process.returncode}")
    return process.returncode, said


def require(kept: bool, what: str) -> None:
    """Raise Broken unless a promise is kept."""
    if not kept:
        raise Broken(what)


def result(folder: Path) -> tuple[list[dict[str, object]], bytes]:
    """What of a finished job must not depend on how it came about."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["args"]["output_dir"], record["args"]["workers"], record["step_time"]
        record.pop("mem_gb", None)
        record.pop("evaluation_time", None)
    return records, tensors(folder / "model.pkl")


def tensors(path: Path) -> bytes:
    """The bytes of all tensors in a file that torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if "/data/" in name)
        return b"".join(archive.read(name) for name in names)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content of a file of JSON or YAML as a disk or a stranger may leave it."""
    if not content:
        return b"["
    words = re.findall(rb"[A-Za-z_]{4,}", content) or [content]
    kinds: list[Callable[[bytes], bytes]] = [
        lambda text: text[: draw.randrange(len(text))],
        lambda text: text.replace(b'"', b"", 1),
        lambda text: text.replace(b"1", b"1" * 5000, 1),
        lambda text: text.replace(draw.choice(words), json.dumps(ESCAPE)[1:-1].encode()),
        lambda text: text.replace(b"0.", b"NaN, ", 1),
        lambda text: text.replace(b'"lr"', b'"lr": 1, "lr"'),
        lambda text: re.sub(rb": [\d.]+", b": NaN", text),
        lambda text: re.sub(rb": [^,{}\[\]]+", b": null", text, count=draw.randrange(1, 9)),
        lambda text: b"\0\xff\xfe" + text,
        lambda text: bytes(draw.sample(text, len(text))),
    ]
    return draw.choice(kinds)(content)


def lying_counts(path: Path, draw: random.Random) -> None:
    """Have a file of what was measured claim other numbers of rows, and hide an escape in it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(members["facts.json"])
    facts["images"] = draw.choice((0, -1, 10**9, 10**18, 10**400, None, [1], "1"))
    facts["splits"][0] |= {"images": facts["images"], "environment": ESCAPE}
    members["facts.json"] = json.dumps(facts).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


class NotHere(Exception):
    """An attack needs what this machine does not have."""


class Attacks:
    """Each method is one attack; all share one undisturbed run."""

    def __init__(self, place: Path, draw: random.Random) -> None:
        self.place, self.draw = place, draw
        self.plain = place / "undisturbed"
        process = train(self.plain)
        _, err = process.communicate()
        require(process.returncode == 0, f"the undisturbed run failed: {err[-2000:]}")
        self.expected = result(self.plain)
        self.image = place / "image.png"
        Image.new("RGB", (40, 40), "red").save(self.image)
        status, said = carft("predict", str(self.plain), str(self.image))
        require(status == 0, f"the undisturbed run does not predict: {said[-2000:]}")

    def new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place)) / "out"

    def _disturbed(self, folder: Path, numbers: tuple[signal.Signals, ...]) -> None:
        for _ in range(self.draw.randrange(1, 8)):
            process = train(folder, self.draw.choice((0, 0, 2)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=self.draw.uniform(2, 14))
            if process.poll() is None:
                number = self.draw.choice(numbers)
                to = os.killpg if number == signal.SIGKILL else os.kill
                to(process.pid, number)
                process.communicate()
            if (folder / "done").exists():
                break
        else:
            process = train(folder)
            _, err = process.communicate()
            require(process.returncode == 0, f"undisturbed at last, it failed: {err[-2000:]}")
        require(result(folder) == self.expected, f"{folder} differs from the undisturbed run")
        left = {path.name for path in folder.iterdir()} - {
            path.name for path in self.plain.iterdir()
        }
        require(not left, f"{folder} has {left} left over")

    def kills(self) -> None:
        self._disturbed(self.new(), (signal.SIGKILL,))

    def signals(self) -> None:
        self._disturbed(self.new(), (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP))

    def launchers(self) -> None:
        """Three at once, one of them killed."""
        folder = self.new()
        declared = folder.with_suffix(".yaml")
        declared.write_text(json.dumps(SWEEP))  # which is YAML, too
        words = ["-m", "domainbed_carft", "sweep", "launch", str(declared), "--yes"]
        words += ["--output_dir", str(folder)]
        kinds = (["--launcher", "pool", "--jobs", "2"], ["--launcher", "local"])
        running = [start(*words, *self.draw.choice(kinds)) for _ in range(3)]
        time.sleep(self.draw.uniform(5, 25))
        os.killpg(running[0].pid, signal.SIGKILL)
        for process in running:
            process.communicate()
        process = start(*words, "--launcher", "pool")
        _, err = process.communicate()
        require(process.returncode == 0, f"the last launch: {process.returncode} {err[-2000:]}")
        jobs = [path.parent for path in folder.glob("*/done")]
        require(len(jobs) == 8, f"{len(jobs)} of 8 jobs are done")
        for job in jobs:
            steps = [json.loads(line)["step"] for line in (job / "results.jsonl").open()]
            require(max(Counter(steps).values()) == 1, f"{job} was trained twice: {steps}")
            tried = job / "attempts.jsonl"  # of a killed launcher's job there may be none
            lines = tried.read_text().splitlines() if tried.exists() else []
            statuses = [json.loads(line)["status"] for line in lines]
            require(statuses.count(0) <= 1, f"{job} was trained twice: {statuses}")

    def records(self) -> None:
        """Mutated records and manifest, for every reader of them."""
        folder = self.new()
        name = "0" * 32
        shutil.copytree(self.plain, folder / name)
        args = self.expected[0][0]["args"]
        job = {"folder": name, "variant": "", "args": args}
        listed = {"version": 1, "jobs": [job], "datasets": {}, "selection": [], "compare_with": []}
        (folder / "sweep.json").write_text(json.dumps(listed))
        attempt = {"started": 1.0, "ended": 2.0, "host": "a", "slurm": None, "status": 1}
        tried = folder / name / "attempts.jsonl"
        tried.write_text(json.dumps({**attempt, "last_words": "word"}) + "\n")
        (folder / name / "done").unlink()
        for path in (folder / "sweep.json", tried, *(folder / name).glob("*.[jt]*")):
            if self.draw.random() < 0.5:
                path.write_bytes(mutated(path.read_bytes(), self.draw))
        for words in (["collect"], ["collect", "--format", "csv"], ["top"], ["sweep", "status"]):
            carft(*words, str(folder))
        carft("diff", str(folder), str(folder))

    def weights(self) -> None:
        """Flipped and cut bytes of a saved run; one flipped bit never goes unnoticed."""
        folder = self.new()
        shutil.copytree(self.plain, folder)
        path = folder / "model.pkl"
        content = bytearray(path.read_bytes())
        if self.draw.random() < 0.5:
            content[self.draw.randrange(len(content) // 4, 3 * len(content) // 4)] ^= 1 << 3
        else:
            content = content[: self.draw.randrange(len(content))]
        path.write_bytes(content)
        status, said = carft("predict", str(path), str(self.image))
        # A bit of the padding between tensors is nobody's.
        harmless = status == 0 and tensors(path) == self.expected[1]
        require(status == 1 or harmless, f"{status}, damaged weights were used: {said[-500:]}")

    def evaluations(self) -> None:
        """Flipped, cut and lying files of what was measured: refused, or equal to the bit."""
        folder = self.new() / ("0" * 32)
        shutil.copytree(self.plain, folder)
        words = ["evaluate", str(folder.parent), "--device", "cpu", "--jobs", "1"]
        status, output = carft(*words)
        require(status == 0, f"the sweep is not evaluated: {output[-2000:]}")
        rows = self.draw.choice(sorted(folder.glob("evaluation_step*.npz")))
        figures = rows.with_suffix(".json")
        measured = (rows.read_bytes(), figures.read_bytes())

        kind = self.draw.choice(("flip", "cut", "lie", "summary"))
        content = bytearray(measured[0])
        if kind == "flip":
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        elif kind == "cut":
            content = content[: self.draw.randrange(len(content))]
        rows.write_bytes(content)
        if kind == "lie":
            lying_counts(rows, self.draw)
        elif kind == "summary":
            figures.write_bytes(mutated(measured[1], self.draw))

        status, output = carft(*words)
        require(status == 0, f"after {kind}: {status}, {output[-2000:]}")
        require(figures.read_bytes() == measured[1], f"after {kind} the figures differ")

    def links(self) -> None:
        """A link to a file of the user, a pipe or a device in place of any file of a sweep."""
        folder = self.new() / ("0" * 32)
        shutil.copytree(self.plain, folder)
        words = ["evaluate", str(folder.parent), "--device", "cpu", "--jobs", "1"]
        status, output = carft(*words)
        require(status == 0, f"the sweep is not evaluated: {output[-2000:]}")
        victim = self.new().parent / "victim"
        victim.write_text("precious")

        names = ["lock", "attempts.jsonl", "suites.jsonl", "../sweep.json", "../sweep.yaml"]
        paths = [folder / name for name in names] + list(folder.iterdir())
        for path in self.draw.sample(paths, 3):
            path.unlink(missing_ok=True)
            kind = self.draw.choice(("link", "pipe", "device"))
            if kind == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to(victim if kind == "link" else "/dev/zero")
        for command in (
            words,
            ["collect", str(folder.parent)],
            ["sweep", "status", str(folder.parent)],
        ):
            carft(*command)
        process = train(folder)
        _, err = process.communicate(timeout=300)
        require("Traceback" not in err, f"train in a folder with links: {err[-2000:]}")
        require(victim.read_text() == "precious", "a link was written through")

    def yaml(self) -> None:
        """A damaged declaration; nothing is launched."""
        folder = self.new()
        text = b'name: x\ndatasets: ["EmojiStyles"]\nalgorithms: [CARFT]\nhparams: {"lr": 0.1}\n'
        declared = folder.with_suffix(".yaml")
        declared.write_bytes(mutated(text, self.draw))
        carft("sweep", "launch", str(declared), "--output_dir", str(folder), "--dry-run")
        require(not folder.exists(), f"a dry run wrote {folder}")

    def disk(self) -> None:
        """A disk that is full at some point, then has room."""
        folder = self.new().parent
        size = self.draw.choice((8, 64, 512, 4096, 16384))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            raise NotHere("no file system can be mounted here, which takes root")
        try:
            process = train(folder / "out")
            _, err = process.communicate()
            require("Traceback" not in err, f"a full disk: {err[-2000:]}")
            status = process.returncode
            require(status in (0, 74), f"a full disk: status {status}, {err[-2000:]}")
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            process = train(folder / "out")
            process.communicate()
            require(process.returncode == 0, "with room again the job failed")
            require(result(folder / "out") == self.expected, "with room again the run differs")
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False)


ATTACKS = (
    *("kills", "signals", "launchers", "records", "weights", "evaluations", "links", "yaml"),
    "disk",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=ATTACKS)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    print(f"seed {arguments.seed}")
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="carft-hostile-") as place:
        attacks = Attacks(Path(place), draw)
        until = time.monotonic() + 60 * arguments.minutes
        left = list(dict.fromkeys(arguments.only))
        while left and (not done or time.monotonic() < until):
            name = draw.choice(left)
            try:
                getattr(attacks, name)()
            except Broken as broken:
                print(f"BROKEN by {name}, seed {arguments.seed}: {broken}")
                return 1
            except NotHere as reason:
                print(f"{name}: left out: {reason}", flush=True)
                left.remove(name)
                continue
            done[name] += 1
            print(f"{name}: kept", flush=True)
    counts = ", ".join(f"{n} {name}" for name, n in done.items())
    print(f"All promises kept: {counts}." if done else "Nothing was tried.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
