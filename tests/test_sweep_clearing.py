"""Cancel and clean, while others are at work in the same folder."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from sweep_jobs import wait_until

from domainbed_carft import cli
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.sweep import clearing, declaration, launching, states, upkeep

TEXT = "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\ntrials: 1\nsteps: 11\n"

HOLD = """
import sys, time
from domainbed_carft.jobs.folder import JobFolder
with JobFolder(sys.argv[1]).claim():
    print("ready", flush=True)
    time.sleep(60)
"""

QUEUE = """
import sys, time
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.launchers import launches
with launches.in_hand("pool", [JobFolder(sys.argv[1])]):
    print("ready", flush=True)
    time.sleep(60)
"""

# A job with a loader of its own, both of which have the lock, as a foreign train has.
ORPHAN = """
import subprocess, sys
from domainbed_carft.jobs.folder import JobFolder
train = '''
import signal, subprocess, sys
loader = subprocess.Popen(["sleep", "60"], close_fds=False)
def end(number, frame):
    code = loader.poll()
    loader.kill()
    open(sys.argv[1], "w").write(f"told while its loader was {code}")
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
signal.pause()
'''
with JobFolder(sys.argv[1]).claim() as lock:
    subprocess.run([sys.executable, "-c", train, sys.argv[1] + "/story"], pass_fds=[lock])
"""


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "out"
    made = declaration.parse(TEXT, "x.yaml")
    statuses = launching.look(made, "D", folder)
    launching.prepare(made, "D", folder, statuses, "pool", launching.Origin("x.yaml", TEXT))
    return folder, [status.job for status in statuses]


@pytest.fixture
def start():
    running = []

    def begin(code, folder):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_what_is_taken_up_while_clean_asks_is_not_deleted(sweep, start, monkeypatch, capsys):
    folder, (queued, held, done, free) = sweep

    def meanwhile(yes):
        start(QUEUE, queued.folder)
        start(HOLD, held.folder)
        (done.folder / "done").touch()

    monkeypatch.setattr(upkeep, "confirm", meanwhile)
    assert cli.main(["sweep", "clean", str(folder), "--incomplete"]) == 0
    said = capsys.readouterr().out
    assert "About to delete 4 folders" in said and "\n1 folder deleted" in said
    assert all((job.folder / "job.json").exists() for job in (queued, held, done))
    assert not free.folder.exists()


def test_a_job_that_is_launched_while_its_folder_is_deleted_keeps_its_lock(
    sweep, start, monkeypatch
):
    folder, (job, *_) = sweep
    before = states.status(job, states.queues(folder))
    delete = shutil.rmtree

    def launched_meanwhile(path):
        assert path.parent == job.folder.parent and path.name.startswith(
            f".deleted-{job.folder.name}-"
        )
        (path / "lock").unlink()
        job.folder.mkdir()
        start(HOLD, job.folder)
        delete(path)

    monkeypatch.setattr(clearing.shutil, "rmtree", launched_meanwhile)
    assert clearing.remove_folder(before, folder)
    assert JobFolder(job.folder).is_held() and JobFolder(job.folder).lock_path.exists()
    assert not list(folder.glob(".deleted-*"))


def test_clean_finishes_a_deletion_that_was_cut_short(sweep, capsys):
    folder, (job, *_) = sweep
    cut = folder / f".deleted-{job.folder.name}-12"
    (cut / ("0" * 32)).mkdir(parents=True)
    assert cli.main(["sweep", "status", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("4 jobs:")
    assert cli.main(["sweep", "clean", str(folder)]) == 0
    assert not cut.exists()


def test_a_file_that_vanishes_meanwhile_is_not_counted(tmp_path):
    (tmp_path / "a").write_text("abc")
    assert clearing.remove_files([tmp_path / "gone", tmp_path / "a"]) == (1, 3)


def test_cancel_reaches_a_job_whose_lock_names_a_dead_launcher(sweep, start, capsys):
    folder, (orphan, stale, *_) = sweep
    start(ORPHAN, orphan.folder).kill()
    died = start(HOLD, stale.folder)
    died.kill()
    died.wait()
    wait_until(lambda: JobFolder(stale.folder).last_holder())
    assert JobFolder(orphan.folder).is_held()
    began = time.monotonic()
    assert cli.main(["sweep", "cancel", str(folder), "--yes"]) == 0
    assert time.monotonic() - began < 30
    assert "\n1 job stopped" in capsys.readouterr().out  # the stale one did not run
    # Its loader was left to it, so that it could save itself.
    assert (orphan.folder / "story").read_text() == "told while its loader was None"


def test_who_only_asks_for_a_lock_or_waits_for_it_does_not_hold_it(sweep, start):
    _, (job, *_) = sweep
    holder = start(HOLD, job.folder)
    code = "import os, sys; os.open(sys.argv[1] + '/lock', os.O_RDWR); print('ready', flush=True)"
    start(f"{code}; sys.stdin.read()", job.folder)
    assert clearing.roots_of_holders(job.folder) == [holder.pid]


def test_cancel_looks_again_when_one_it_saw_has_ended_meanwhile(sweep, start, capsys, monkeypatch):
    folder, (job, *_) = sweep
    process = start(HOLD, job.folder)
    ended = start("print('ready', flush=True)", job.folder)
    ended.wait()
    seen = iter([[ended.pid], []])
    look = clearing.roots_of_holders
    monkeypatch.setattr(clearing, "roots_of_holders", lambda path: next(seen, None) or look(path))
    assert cli.main(["sweep", "cancel", str(folder), "--yes"]) == 0
    assert capsys.readouterr().out.endswith("1 job stopped; launch again to go on.\n")
    assert process.wait(10) == -signal.SIGTERM


def test_cancel_says_at_once_whom_it_cannot_reach(sweep, start, capsys, monkeypatch):
    folder, (job, *_) = sweep
    process = start(HOLD, job.folder)
    monkeypatch.setattr(clearing, "_processes", lambda: [])
    began = time.monotonic()
    assert cli.main(["sweep", "cancel", str(folder), "--yes"]) == 1
    assert time.monotonic() - began < 30
    said = capsys.readouterr()
    assert f"process {process.pid}" in said.err and "cannot be reached" in said.err
    assert "0 jobs stopped" in said.out
    process.send_signal(signal.SIGKILL)
