"""Warm starts: a job forked from a process that has its imports is what a cold one would be."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from domainbed.command_launchers import REGISTRY
from fake_checkout import REPO, write_checkout, write_files
from runs_jobs import write_pictures
from sweep_jobs import launch, run, wait_until

from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.warm import SWITCH

# A stand-in for train, which tells what it finds, and then does as it is told.
TRAIN = """
import json, multiprocessing, os, random, signal, sys, time
import imported_by

if __name__ == "__main__":
    flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    folder, lock = flags["--output_dir"], int(os.environ.get("DOMAINBED_LOCK_FD", 0))
    os.makedirs(folder, exist_ok=True)
    status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
    opened = []
    for number in os.listdir("/proc/self/fd"):
        try:
            opened.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass
    facts = dict(
        argv=sys.argv, orig_argv=sys.orig_argv, path=sys.path, cwd=os.getcwd(),
        environment={n: v for n, v in os.environ.items() if n != "DOMAINBED_LOCK_FD"},
        lock=os.readlink(f"/proc/self/fd/{lock}"), inherited=os.get_inheritable(lock),
        streams=[os.readlink(f"/proc/self/fd/{n}") for n in range(2)],
        opened=sorted(path for path in opened if not path.startswith(("pipe:", "/tmp/carft-job"))),
        signals={name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
        leader=os.getsid(0) == os.getpgid(0) == os.getpid(),
        main=(__name__, __spec__.name, sys.modules["__main__"].__dict__ is globals()),
        method=multiprocessing.get_start_method(allow_none=True),
        threads=len(os.listdir("/proc/self/task")),
        drawn=random.random(), pid=os.getpid(), imported_by=imported_by.PID, parent=os.getppid(),
    )
    with open(folder + "/facts.new", "w") as file:
        json.dump(facts, file)
    os.rename(folder + "/facts.new", folder + "/facts")
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    end = time.monotonic() + float(flags.get("--seconds", 0))
    while time.monotonic() < end:
        time.sleep(0.02)
        if stop:
            sys.exit(75)
    print("last words", file=sys.stderr)
    exec(flags.get("--code", "pass"))
    open(folder + "/done", "w").close()
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Path:
    """A folder for jobs of the stand-in, which is where `python -m` finds it."""
    module = {"imported_by.py": "import os\nPID = os.getpid()\n", "domainbed/__init__.py": ""}
    module["clip.py"] = ""  # of torch no test here needs more than a second a process
    module |= {"domainbed/scripts/__init__.py": "", "domainbed/scripts/train.py": TRAIN}
    added = write_files(tmp_path / "path", module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (added, REPO))))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path / "pictures")


def line(folder: Path, **flags: object) -> str:
    return Job(flags, folder).line


def facts(folder: Path) -> dict:
    return json.loads((folder / "facts").read_text())


def is_warm(folder: Path) -> bool:
    return facts(folder)["imported_by"] != facts(folder)["pid"]


def statuses(folder: Path) -> list[int]:
    return [attempt.status for attempt in JobFolder(folder).attempts()]


def processes(pid: int) -> list[int]:
    """This process's children, and theirs."""
    children = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _parent(entry) == pid
    ]
    return [*children, *(one for child in children for one in processes(child))]


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return -1


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_job_finds_what_a_cold_one_finds(sweep, monkeypatch):
    before = {*processes(os.getpid())}  # other tests' helpers
    jobs = {name: [sweep / name / str(n) for n in range(3)] for name in ("warm", "cold")}
    for name, folders in jobs.items():
        monkeypatch.setenv(SWITCH, "1" if name == "cold" else "")
        assert run("pool", [line(one, hparams={"a b": "'ü"}) for one in folders], jobs=2) == []
    warm, cold = ([facts(one) for one in folders] for folders in jobs.values())
    assert not any(map(is_warm, jobs["cold"])) and all(map(is_warm, jobs["warm"]))
    assert len({found["imported_by"] for found in warm}) == 1
    assert len({found["drawn"] for found in warm}) == 3
    for found, expected in zip(warm, cold):
        for one in (found, expected):
            del one["environment"][SWITCH]
            for own in ("drawn", "pid", "imported_by", "parent"):
                del one[own]
        expected = json.loads(json.dumps(expected).replace(f"{sweep}/cold", f"{sweep}/warm"))
        for fact, value in expected.items():
            assert (fact, found[fact]) == (fact, value)
    assert {*processes(os.getpid())} <= before


def test_crashes_are_noted_as_of_cold_jobs_and_harm_no_other(sweep):
    codes = {
        "signal": "os.kill(os.getpid(), signal.SIGSEGV)",
        "exit": "os._exit(7)",
        "error": "raise ValueError('so')",
        "words": "sys.exit('words')",
        "wrong": "sys.exit(2)",
    }
    jobs = [line(sweep / "long", seconds=2)]
    jobs += [line(sweep / name, code=code) for name, code in codes.items()]
    left = {one.folder.name: (one.status, one.last_words) for one in run("pool", jobs, jobs=2)}
    assert left == {
        "signal": (-signal.SIGSEGV, "last words"), "exit": (7, "last words"),
        "error": (1, "ValueError: so"), "words": (1, "words"), "wrong": (2, "last words"),
    }  # fmt: skip
    assert statuses(sweep / "signal") == [-signal.SIGSEGV] * 3 and statuses(sweep / "long") == [0]
    assert all(is_warm(sweep / name) for name in (*codes, "long"))


def test_a_killed_job_leaves_no_lock_while_another_runs(sweep):
    process = launch("pool", [line(sweep / n, seconds=60) for n in "abc"], {"jobs": 3})
    wait_until(lambda: all((sweep / name / "facts").exists() for name in "abc"))
    os.kill(facts(sweep / "a")["pid"], signal.SIGKILL)
    wait_until(lambda: statuses(sweep / "a"))
    assert statuses(sweep / "a") == [-signal.SIGKILL]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    for name in "bc":
        assert is_warm(sweep / name) and statuses(sweep / name) == [75]
        assert not JobFolder(sweep / name).is_held()


def test_jobs_outlive_a_killed_launcher_and_the_warm_process_does_not(sweep):
    process = launch("pool", [line(sweep / n, seconds=3) for n in "ab"], {"jobs": 2})
    wait_until(lambda: all((sweep / name / "facts").exists() for name in "ab"))
    forked_from = facts(sweep / "a")["imported_by"]
    process.kill()
    process.communicate()
    wait_until(lambda: not is_alive(forked_from), 2)
    folders = [JobFolder(sweep / name) for name in "ab"]
    assert all(folder.is_held() for folder in folders)
    wait_until(lambda: all(folder.done and not folder.is_held() for folder in folders), 20)
    guards = [facts(sweep / name)["parent"] for name in "ab"]
    wait_until(lambda: not any(map(is_alive, guards)), 2)


def test_a_killed_warm_process_costs_no_job(sweep):
    jobs = [line(sweep / n, seconds=2, code="sys.exit(3)") for n in "ab"]
    process = launch("pool", [*jobs, line(sweep / "c")], {"jobs": 2})
    wait_until(lambda: all((sweep / name / "facts").exists() for name in "ab"))
    was_warm = [is_warm(sweep / name) for name in "ab"]
    os.kill(facts(sweep / "a")["imported_by"], signal.SIGKILL)
    process.communicate()
    assert was_warm == [True, True] and not is_warm(sweep / "c")
    assert statuses(sweep / "a") == statuses(sweep / "b") == [3, 3, 3]
    assert statuses(sweep / "c") == [0]


def test_a_job_whose_guard_is_killed_is_noted_at_its_end(sweep):
    process = launch("pool", [line(sweep / n, seconds=2) for n in "ab"], {"jobs": 2})
    wait_until(lambda: all((sweep / name / "facts").exists() for name in "ab"))
    os.kill(facts(sweep / "a")["parent"], signal.SIGKILL)
    out, _ = process.communicate()
    assert json.loads(out) == []
    assert statuses(sweep / "a") == [-signal.SIGTERM] and statuses(sweep / "b") == [0]
    (first,) = JobFolder(sweep / "a").attempts()
    assert first.ended - first.started > 2


@pytest.mark.parametrize("variable", [SWITCH, "OMP_NUM_THREADS", "PYTHONHASHSEED", "MINE"])
def test_a_job_with_variables_of_its_own_starts_cold(sweep, variable):
    jobs = [line(sweep / n) for n in "ab"]
    assert run("local", [jobs[0], f"{variable}=3 {jobs[1]}", line(sweep / "c")]) == []
    assert [is_warm(sweep / name) for name in "abc"] == [True, False, True]
    assert facts(sweep / "b")["environment"][variable] == "3"


def test_what_is_set_late_may_differ(sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    jobs = [f"WANDB_RUN_GROUP={n} {line(sweep / n, seconds=1)}" for n in "ab"]
    assert run("pool", jobs) == []
    assert all(is_warm(sweep / name) for name in "ab")
    own = [facts(sweep / name)["environment"] for name in "ab"]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in own} == {"4", "5"}
    assert [one["WANDB_RUN_GROUP"] for one in own] == ["a", "b"]


def test_the_harness_own_local_starts_them_too_with_its_streams(sweep, capfd):
    """And in its session, so that Ctrl-C in a terminal reaches them."""
    before = {*processes(os.getpid())}
    lines = [line(sweep / n, code=f"print({n!r}, os.getsid(0)); sys.exit({n})") for n in "03"]
    failed = REGISTRY["local"](lines)
    out, err = capfd.readouterr()
    assert out == f"0 {os.getsid(0)}\n3 {os.getsid(0)}\n"
    assert err.startswith("last words\nlast words\nsweep: 1 of 2 jobs failed:\n- exit status 3: ")
    assert len(failed) == 1 and all(is_warm(sweep / name) for name in "03")
    assert {*processes(os.getpid())} <= before


def outcome(folder: Path) -> tuple[list[dict], dict]:
    """Records without times, and the weights."""
    records = [json.loads(one) for one in (folder / "results.jsonl").read_text().splitlines()]
    for record in records:
        del record["step_time"], record["args"]["output_dir"]
    return records, torch.load(folder / "model.pkl", weights_only=True)["model_dict"]


def test_a_job_trains_as_a_cold_one_to_the_bit_also_stopped_half_way(tmp_path, pictures):
    """Forked, with loaders that it forks."""
    hparams = {"batch_size": 4, "clip_backbone": "tiny", "lr": 1e-3, "warmup_steps": 0}
    args = {"algorithm": "CARFT", "dataset": str(pictures), "hparams": hparams, "steps": 9}
    args |= {"checkpoint_freq": 4, "workers": 1, "seed": 7}
    stopped, cold = (Job(args, tmp_path / name) for name in ("stopped", "cold"))
    process = launch("pool", [stopped.line])
    wait_until(lambda: (stopped.folder / "results.jsonl").exists())
    pid = JobFolder(stopped.folder).holder().pid
    assert b"domainbed_carft.jobs.forking" in Path(f"/proc/{pid}/cmdline").read_bytes()
    os.kill(pid, signal.SIGTERM)
    out, err = process.communicate()
    assert json.loads(out) == [], err
    assert run("local", [f"{SWITCH}=1 {cold.line}"]) == []
    assert [statuses(job.folder) for job in (stopped, cold)] == [[75, 0], [0]]
    (records, weights), expected = outcome(stopped.folder), outcome(cold.folder)
    assert records == expected[0] and weights.keys() == expected[1].keys()
    assert all(torch.equal(weights[name], value) for name, value in expected[1].items())
    assert "stopped by SIGTERM" in (stopped.folder / "err.txt").read_text()
    assert "Traceback" not in (cold.folder / "err.txt").read_text()  # torch 2.1 has a warning


IN_A_CHECKOUT = """
import json, sys
from domainbed import algorithms, hparams_registry

if __name__ == "__main__":
    folder = sys.argv[sys.argv.index("--output_dir") + 1]
    found = algorithms.get_algorithm_class("CARFT")
    facts = dict(
        file=algorithms.__file__, found=str(found.__mro__), listed=algorithms.ALGORITHMS,
        hparams=hparams_registry.default_hparams("CARFT", "Pets"), path=sys.path,
        command=open("/proc/self/cmdline").read(),
    )
    json.dump(facts, open(folder + "/done", "w"))
"""


def test_in_another_checkout_jobs_are_forks_of_its_own_train_with_our_plugin(tmp_path, monkeypatch):
    checkout = write_checkout(tmp_path / "checkout", **{"scripts/train": IN_A_CHECKOUT})
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    jobs = [line(tmp_path / "warm"), f"{SWITCH}=1 {line(tmp_path / 'cold')}"]
    assert run("local", jobs) == []
    warm, cold = (json.loads((tmp_path / name / "done").read_text()) for name in ("warm", "cold"))
    assert ["jobs.forking" in one.pop("command") for one in (warm, cold)] == [True, False]
    assert warm == cold
    assert cold["file"] == str(checkout / "domainbed" / "algorithms.py")
    assert "domainbed_carft.method.algorithms.CARFT" in cold["found"]


THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
FAULT = """
if "DOMAINBED_LOCK_FD" not in os.environ:
    raise ImportError
"""


@pytest.mark.parametrize("added", [THREAD, FAULT], ids=["thread", "fault"])
def test_what_cannot_be_forked_starts_cold(sweep, added):
    """Here imports that start a thread, and imports that fail where there is no job."""
    module = sweep / "path" / "imported_by.py"
    module.write_text(module.read_text() + added)
    assert run("local", [line(sweep / "a"), line(sweep / "b")]) == []
    assert not is_warm(sweep / "a") and not is_warm(sweep / "b")
