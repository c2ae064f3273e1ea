"""Retry, cancel and clean, while others are at work in the same folder."""

import signal

from sweep_folders import ended, finish, status

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states


def carft(capsys, command, folder, *flags, status=0):
    capsys.readouterr()
    assert cli.main(["sweep", command, str(folder), *flags]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def quoted_names(folder):
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
    assert len(quoted_names(folder)) == 8
    (done.folder / "kept.part").mkdir()
    said = carft(capsys, "clean", folder, status=1)
    assert "kept.part: " in said and said.endswith("; check this path and its permissions\n")


def test_clean_never_touches_a_job_that_is_done_runs_or_waits(
    sweep, other_processes, monkeypatch, capsys
):
    """Nor one that is taken up while it asks."""
    folder, found = sweep
    done, running, queued, failed, died, new, *later = found
    finish(done)
    other_processes.hold(running)
    other_processes.queue(queued)
    ended(failed, 2)
    process = other_processes.hold(died)
    process.kill()
    process.wait()
    for job in (done, running, *later):
        job.folder.mkdir(exist_ok=True)
        (job.folder / "out.txt").touch()

    def meanwhile(yes):
        other_processes.queue(later[0])
        other_processes.hold(later[1])

    monkeypatch.setattr("domainbed_carft.cli.sweep.confirm", meanwhile)
    said = carft(capsys, "clean", folder, "--incomplete")
    assert "About to delete 5 jobs: 1 not launched, 3 interrupted, 1 failed." in said
    assert "\n3 jobs deleted" in said
    assert all((job.folder / "out.txt").exists() for job in (done, running, *later))
    assert not any(job.folder.exists() for job in (died, failed, new))
    assert quoted_names(folder) == {job.folder for job in (done, running, queued, *later)}
    said = carft(capsys, "clean", folder, "--incomplete")
    assert "There are no incomplete jobs to delete." in said


def test_cancel_stops_who_has_a_lock_and_says_whom_it_cannot_reach(sweep, other_processes, capsys):
    folder, (job, foreign, *_) = sweep
    process = other_processes.hold(job)
    elsewhere = other_processes.hold(foreign, host="another machine")
    said = carft(capsys, "cancel", folder, "--yes", status=1)
    assert process.wait(10) == -signal.SIGTERM
    assert "on another machine" not in said and "another machine, process" in said
    assert "which cannot be reached" in said
    assert elsewhere.poll() is None
    elsewhere.kill()
    elsewhere.wait()
    assert "No jobs are running or queued." in carft(capsys, "cancel", folder, "--yes")


def test_cancel_signals_no_process_that_is_younger_than_the_lock(sweep, other_processes, capsys):
    """A launcher died, its job runs on with its lock, and its number is another's by now."""
    folder, (job, *_) = sweep
    young = other_processes.start(
        "print('ready', flush=True); import sys; sys.stdin.read()", folder
    )
    other_processes.hold(job, pid=young.pid, since=1000.0, updated=1000.0)
    assert "cannot be reached" in carft(capsys, "cancel", folder, "--yes", status=1)
    assert young.poll() is None
