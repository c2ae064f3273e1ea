"""Retry, cancel and clean, while others are at work in the same folder."""

import signal

from sweep_folders import ended, finish, status

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states, upkeep


def carft(capsys, command, folder, *flags, status=0):
    capsys.readouterr()
    assert cli.main(["sweep", command, str(folder), *flags]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def listed(folder):
    return {job.folder for job in manifest.read(folder).jobs}


def test_retry_keeps_how_they_ended(sweep, capsys):
    folder, (a, b, *_) = sweep
    ended(a, 1, 1, 1)
    ended(b, 2)
    said = carft(capsys, "retry", folder, "--only", "test environments 1")
    assert "1 of 2 failed jobs will be retried" in said
    assert [status(folder, job).state for job in (a, b)] == [states.FAILED, states.NOT_LAUNCHED]
    assert (b.folder / "attempts-1.jsonl").read_text().count("words of 2") == 1
    said = carft(capsys, "retry", folder, "--only", "DomainNet", status=1)
    assert "no failed job matches 'DomainNet'; for a list: carft sweep status" in said


def test_clean_removes_leftovers_of_done_jobs_only(sweep, capsys):
    folder, (done, other, *_) = sweep
    finish(done)
    other.folder.mkdir()
    for job in (done, other):
        for name in ("state.pt", "model.pkl.part", "model.pkl", "results.jsonl"):
            (job.folder / name).write_text("x")
    cut = folder / f".deleted-{other.folder.name}-12"  # a deletion that was cut short
    (cut / ("0" * 32)).mkdir(parents=True)
    assert "2 leftover files deleted" in carft(capsys, "clean", folder)
    left = {p.name for p in done.folder.iterdir()}
    assert left == {"model.pkl", "results.jsonl", "done"}
    assert (other.folder / "state.pt").exists() and not cut.exists()
    assert len(listed(folder)) == 8
    (done.folder / "kept.part").mkdir()
    said = carft(capsys, "clean", folder, status=1)
    assert "kept.part: " in said and said.endswith("; check this path and its permissions\n")


def test_clean_never_touches_a_job_that_is_done_runs_or_waits(sweep, others, capsys):
    folder, found = sweep
    done, running, died, failed, stopped, foreign, new, queued = found
    finish(done)
    others.hold(running)
    (running.folder / "state.pt").write_text("precious")
    process = others.hold(died)
    process.kill()
    process.wait()
    ended(failed, 2)
    ended(stopped, 75)
    foreign.folder.mkdir()
    (foreign.folder / "out.txt").touch()
    others.queue(queued)
    said = carft(capsys, "clean", folder, "--incomplete", "--yes")
    assert "About to delete 5 jobs: 1 not launched, 3 interrupted, 1 failed." in said
    assert "\n5 jobs deleted" in said
    assert done.folder.is_dir() and (running.folder / "state.pt").read_text() == "precious"
    assert not any(job.folder.exists() for job in (died, failed, stopped, foreign, new))
    assert listed(folder) == {done.folder, running.folder, queued.folder}
    said = carft(capsys, "clean", folder, "--incomplete", "--yes")
    assert "There are no incomplete jobs to delete." in said


def test_what_is_taken_up_while_clean_asks_is_not_deleted(sweep, others, monkeypatch, capsys):
    folder, (queued, held, done, free, *_) = sweep
    for job in (queued, held, done, free):
        job.folder.mkdir()
        (job.folder / "out.txt").touch()

    def meanwhile(yes):
        others.queue(queued)
        others.hold(held)
        finish(done)

    monkeypatch.setattr(upkeep, "confirm", meanwhile)
    said = carft(capsys, "clean", folder, "--incomplete")
    assert "About to delete 8 jobs" in said and "\n5 jobs deleted" in said
    assert all((job.folder / "out.txt").exists() for job in (queued, held, done))
    assert listed(folder) == {queued.folder, held.folder, done.folder}


def test_cancel_stops_who_has_a_lock_and_says_whom_it_cannot_reach(sweep, others, capsys):
    folder, (job, foreign, *_) = sweep
    process = others.hold(job)
    elsewhere = others.hold(foreign, host="another machine")
    said = carft(capsys, "cancel", folder, "--yes", status=1)
    assert process.wait(10) == -signal.SIGTERM
    assert "on another machine" not in said and "another machine, process" in said
    assert "which cannot be reached" in said
    assert elsewhere.poll() is None
    elsewhere.kill()
    elsewhere.wait()
    assert "No jobs are running or queued." in carft(capsys, "cancel", folder, "--yes")


def test_cancel_signals_no_process_that_is_younger_than_the_lock(sweep, others, capsys):
    """A launcher died, its job runs on with its lock, and its number is another's by now."""
    folder, (job, *_) = sweep
    young = others.start("print('ready', flush=True); import sys; sys.stdin.read()", folder)
    others.hold(job, pid=young.pid, since=1000.0, updated=1000.0)
    assert "cannot be reached" in carft(capsys, "cancel", folder, "--yes", status=1)
    assert young.poll() is None
