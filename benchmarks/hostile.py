"""Attack the package at random: kills, signals, damaged files, full disks, parallel launchers.

    python benchmarks/hostile.py [--minutes 10] [--seed N] [--only kills signals ...]

Each round draws one attack and checks the corresponding promise of SECURITY.md: a disturbed run
equals the undisturbed run to the bit, a job is trained only once, and a damaged file causes an
error in one line, without a traceback, terminal escapes, or files outside of the output folder. The
first broken promise is printed with its seed, and the exit status is 1. `make test` has a small
case of each attack.
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
DOCUMENTED_STATUSES = (0, 1, 2, 3, 74, 75, 130)


class BrokenPromise(AssertionError):
    """The package broke a promise."""


def start(*words: str, **options: object) -> subprocess.Popen[str]:
    """Start a Python command in a new process group."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True, errors="surrogateescape", **options,  # type: ignore[call-overload]
    )  # fmt: skip


def train(folder: Path, workers: int = 0) -> subprocess.Popen[str]:
    """Start the job to disturb."""
    words = ["--workers", str(workers), "--output_dir", str(folder)]
    return start("-m", "domainbed.scripts.train", *JOB, *words)


def carft(*words: str) -> tuple[int, str]:
    """Return exit status and output of a `carft` command.

    Raises BrokenPromise for a traceback, a raw escape, or an undocumented exit status.
    """
    process = start("-m", "domainbed_carft", *words)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise BrokenPromise(f"carft {' '.join(words)} did not end within 300 s") from None
    output = out + err
    require("Traceback" not in output, f"carft {' '.join(words)}: {err[-2000:]}")
    require(not set("\x1b\x07\u202e") & set(output), f"carft {' '.join(words)}: a raw escape")
    require(
        process.returncode in DOCUMENTED_STATUSES, f"carft {' '.join(words)}: {process.returncode}"
    )
    return process.returncode, output


def require(condition: bool, message: str) -> None:
    """Raise BrokenPromise with the message unless the condition holds."""
    if not condition:
        raise BrokenPromise(message)


def read_result(folder: Path) -> tuple[list[dict[str, object]], bytes]:
    """Read the records and weights of a finished job that interruptions must not change."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["args"]["output_dir"], record["args"]["workers"], record["step_time"]
        record.pop("mem_gb", None)
        record.pop("evaluation_time", None)
    return records, read_tensors(folder / "model.pkl")


def read_tensors(path: Path) -> bytes:
    """Read the bytes of all tensors in a file written by torch.save."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if "/data/" in name)
        return b"".join(archive.read(name) for name in names)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Damage the content of a JSON or YAML file, like a broken disk or an attacker."""
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


def falsify_counts(path: Path, draw: random.Random) -> None:
    """Write a wrong number of images and a terminal escape into a file of predictions."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(members["facts.json"])
    facts["images"] = draw.choice((0, -1, 10**9, 10**18, 10**400, None, [1], "1"))
    facts["image_sets"][0] |= {"images": facts["images"], "environment": ESCAPE}
    members["facts.json"] = json.dumps(facts).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


class NotPossible(Exception):
    """An attack is not possible on this machine."""


class Attacks:
    """The attacks, one public method each; all share one undisturbed run."""

    def __init__(self, place: Path, draw: random.Random) -> None:
        self.place, self.draw = place, draw
        self.plain = place / "undisturbed"
        process = train(self.plain)
        _, err = process.communicate()
        require(process.returncode == 0, f"the undisturbed run failed: {err[-2000:]}")
        self.expected = read_result(self.plain)
        self.image = place / "image.png"
        Image.new("RGB", (40, 40), "red").save(self.image)
        status, output = carft("predict", str(self.plain), str(self.image))
        require(status == 0, f"the undisturbed run cannot predict: {output[-2000:]}")

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place)) / "out"

    def _disturb(self, folder: Path, numbers: tuple[signal.Signals, ...]) -> None:
        for _ in range(self.draw.randrange(1, 8)):
            process = train(folder, self.draw.choice((0, 0, 2)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=self.draw.uniform(2, 14))
            if process.poll() is None:
                number = self.draw.choice(numbers)
                send = os.killpg if number == signal.SIGKILL else os.kill
                send(process.pid, number)
                process.communicate()
            if (folder / "done").exists():
                break
        else:
            process = train(folder)
            _, err = process.communicate()
            require(
                process.returncode == 0,
                f"the last attempt, which was not disturbed, failed: {err[-2000:]}",
            )
        require(read_result(folder) == self.expected, f"{folder} differs from the undisturbed run")
        extra = {path.name for path in folder.iterdir()} - {
            path.name for path in self.plain.iterdir()
        }
        require(not extra, f"{folder} contains {extra}, which the undisturbed run does not have")

    def kills(self) -> None:
        self._disturb(self.new_folder(), (signal.SIGKILL,))

    def signals(self) -> None:
        self._disturb(
            self.new_folder(), (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
        )

    def launchers(self) -> None:
        """Start three launchers at once, and kill one of them."""
        folder = self.new_folder()
        declared = folder.with_suffix(".yaml")
        declared.write_text(json.dumps(SWEEP))  # JSON is also YAML
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
        require(
            process.returncode == 0, f"the last launch failed: {process.returncode} {err[-2000:]}"
        )
        jobs = [path.parent for path in folder.glob("*/done")]
        require(len(jobs) == 8, f"{len(jobs)} of 8 jobs are done")
        for job in jobs:
            steps = [json.loads(line)["step"] for line in (job / "results.jsonl").open()]
            require(max(Counter(steps).values()) == 1, f"{job} was trained twice: {steps}")
            attempts = job / "attempts.jsonl"  # can be missing after the launcher was killed
            lines = attempts.read_text().splitlines() if attempts.exists() else []
            statuses = [json.loads(line)["status"] for line in lines]
            require(statuses.count(0) <= 1, f"{job} was trained twice: {statuses}")

    def records(self) -> None:
        """Mutate records and manifest, and run all commands that read them."""
        folder = self.new_folder()
        name = "0" * 32
        shutil.copytree(self.plain, folder / name)
        args = self.expected[0][0]["args"]
        job = {"folder": name, "variant": "", "args": args}
        manifest = {"version": 1, "jobs": [job], "datasets": {}, "selection": []}
        (folder / "sweep.json").write_text(json.dumps({**manifest, "compare_with": []}))
        attempt = {"started": 1.0, "ended": 2.0, "host": "a", "slurm": None, "status": 1}
        attempts = folder / name / "attempts.jsonl"
        attempts.write_text(json.dumps({**attempt, "last_words": "word"}) + "\n")
        (folder / name / "done").unlink()
        for path in (folder / "sweep.json", attempts, *(folder / name).glob("*.[jt]*")):
            if self.draw.random() < 0.5:
                path.write_bytes(mutate(path.read_bytes(), self.draw))
        for words in (["collect"], ["collect", "--format", "csv"], ["top"], ["sweep", "status"]):
            carft(*words, str(folder))
        carft("diff", str(folder), str(folder))

    def weights(self) -> None:
        """Flip a bit of saved weights, or truncate them; both must be noticed."""
        folder = self.new_folder()
        shutil.copytree(self.plain, folder)
        path = folder / "model.pkl"
        content = bytearray(path.read_bytes())
        if self.draw.random() < 0.5:
            content[self.draw.randrange(len(content) // 4, 3 * len(content) // 4)] ^= 1 << 3
        else:
            content = content[: self.draw.randrange(len(content))]
        path.write_bytes(content)
        status, output = carft("predict", str(path), str(self.image))
        # A bit of the padding between tensors has no effect.
        if status == 0 and read_tensors(path) == self.expected[1]:
            return
        require(status == 1, f"damaged weights were used, exit status {status}: {output[-500:]}")

    def evaluations(self) -> None:
        """Damage or falsify saved predictions; a new evaluation must restore equal figures."""
        folder = self.new_folder() / ("0" * 32)
        shutil.copytree(self.plain, folder)
        words = ["evaluate", str(folder.parent), "--device", "cpu", "--jobs", "1"]
        status, output = carft(*words)
        require(status == 0, f"the sweep is not evaluated: {output[-2000:]}")
        predictions = self.draw.choice(sorted(folder.glob("evaluation_step*.npz")))
        figures = predictions.with_suffix(".json")
        measured = (predictions.read_bytes(), figures.read_bytes())

        kind = self.draw.choice(("flip", "cut", "lie", "summary"))
        content = bytearray(measured[0])
        if kind == "flip":
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        elif kind == "cut":
            content = content[: self.draw.randrange(len(content))]
        predictions.write_bytes(content)
        if kind == "lie":
            falsify_counts(predictions, self.draw)
        elif kind == "summary":
            figures.write_bytes(mutate(measured[1], self.draw))

        status, output = carft(*words)
        require(status == 0, f"after {kind}: exit status {status}, {output[-2000:]}")
        require(figures.read_bytes() == measured[1], f"after {kind} the figures differ")

    def links(self) -> None:
        """Replace files of a sweep by links to the user's file, pipes and devices."""
        folder = self.new_folder() / ("0" * 32)
        shutil.copytree(self.plain, folder)
        words = ["evaluate", str(folder.parent), "--device", "cpu", "--jobs", "1"]
        status, output = carft(*words)
        require(status == 0, f"the sweep is not evaluated: {output[-2000:]}")
        victim = self.new_folder().parent / "victim"
        victim.write_text("precious")

        names = ["lock", "attempts.jsonl", "../sweep.json", "../sweep.yaml"]
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
        require(victim.read_text() == "precious", "a file outside was overwritten through a link")

    def yaml(self) -> None:
        """Read a damaged declaration in a dry run, which must not write files."""
        folder = self.new_folder()
        text = b'name: x\ndatasets: ["EmojiStyles"]\nalgorithms: [CARFT]\nhparams: {"lr": 0.1}\n'
        declared = folder.with_suffix(".yaml")
        declared.write_bytes(mutate(text, self.draw))
        carft("sweep", "launch", str(declared), "--output_dir", str(folder), "--dry-run")
        require(not folder.exists(), f"a dry run wrote {folder}")

    def disk(self) -> None:
        """Train on a disk that is full at some point, and then has space again."""
        folder = self.new_folder().parent
        size = self.draw.choice((8, 64, 512, 4096, 16384))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            raise NotPossible("mounting a file system needs root")
        try:
            process = train(folder / "out")
            _, err = process.communicate()
            require("Traceback" not in err, f"a full disk: {err[-2000:]}")
            status = process.returncode
            require(status in (0, 74), f"a full disk: status {status}, {err[-2000:]}")
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            process = train(folder / "out")
            process.communicate()
            require(process.returncode == 0, "the job failed when the disk had space again")
            result = read_result(folder / "out")
            require(result == self.expected, "the run differs after the disk had space again")
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False)


ATTACKS = (
    *("kills", "signals", "launchers", "records", "weights", "evaluations", "links", "yaml"),
    "disk",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10, help="duration (default: 10)")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(10**6),
        help="seed of the attacks (default: random)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=ATTACKS, default=ATTACKS, help="attacks to draw from"
    )
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    print(f"seed {arguments.seed}")
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="carft-hostile-") as place:
        attacks = Attacks(Path(place), draw)
        end = time.monotonic() + 60 * arguments.minutes
        names = list(dict.fromkeys(arguments.only))
        while names and (not done or time.monotonic() < end):
            name = draw.choice(names)
            try:
                getattr(attacks, name)()
            except BrokenPromise as error:
                print(f"BROKEN by {name}, seed {arguments.seed}: {error}")
                return 1
            except NotPossible as reason:
                print(f"{name}: skipped: {reason}", flush=True)
                names.remove(name)
                continue
            done[name] += 1
            print(f"{name}: kept", flush=True)
    counts = ", ".join(f"{n} {name}" for name, n in done.items())
    print(f"All promises kept: {counts}." if done else "No attack was run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
