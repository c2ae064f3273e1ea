"""Retry, cancel and clean, while other processes run jobs in the same folder."""

import io
import signal
import sys

import pytest
from sweep_folders import add_attempts, finish, status
from sweep_jobs import carft

from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states, upkeep


def read_folders(folder):
    return {job.folder for job in manifest.read(folder).jobs}


@pytest.mark.parametrize("command", ["retry", "status"])
def test_file_instead_of_a_folder_is_called_a_file(command, tmp_path):
    (tmp_path / "FILE").touch()
    done = carft(command, tmp_path / "FILE")
    assert done.returncode == 1
    assert f"{tmp_path}/FILE is a file; expected the --output_dir of a sweep" in done.stderr


def test_retry_of_matching_jobs_keeps_their_earlier_attempts(sweep):
    folder, (a, b, *_) = sweep
    add_attempts(a, 1, 1, 1)
    add_attempts(b, 2)
    done = carft("retry", folder, "--only", "test environments 1")
    assert "1 of 2 failed jobs will be retried" in done.stdout
    assert [status(folder, job).state for job in (a, b)] == [states.FAILED, states.NOT_LAUNCHED]
    assert (b.folder / "attempts-1.jsonl").read_text().count("words of 2") == 1

    done = carft("retry", folder, "--only", "DomainNet")
    assert done.returncode == 1
    assert "no failed job matches 'DomainNet'; for a list: carft sweep status" in done.stderr

    add_attempts(b, 2)
    (retried,) = upkeep.retry(folder, b.folder.name).retried
    assert retried.job.folder == b.folder
    assert (b.folder / "attempts-2.jsonl").exists()


def test_clean_deletes_leftovers_of_done_jobs_only(sweep):
    folder, (done, unfinished, *_) = sweep
    finish(done)
    unfinished.folder.mkdir()
    for job in (done, unfinished):
        for name in ("state.pt", "model.pkl.part", "model.pkl", "results.jsonl"):
            (job.folder / name).write_text("x")
    cut = folder / f".deleted-{unfinished.folder.name}-12"  # a deletion that was cut short
    (cut / ("0" * 32)).mkdir(parents=True)
    assert "2 leftover files deleted" in carft("clean", folder).stdout

    remaining_names = {path.name for path in done.folder.iterdir()}
    assert remaining_names == {"model.pkl", "results.jsonl", "done"}
    assert (unfinished.folder / "state.pt").exists() and not cut.exists()
    assert len(read_folders(folder)) == 8

    (done.folder / "kept.part").mkdir()
    refused = carft("clean", folder)
    assert refused.returncode == 1 and "kept.part: " in refused.stderr


def test_clean_keeps_jobs_that_are_done_running_or_queued(sweep, foreign_processes):
    """Also jobs that another launch takes up while the command asks for confirmation."""
    folder, jobs = sweep
    done, running, queued, failed, died, new, *later = jobs
    finish(done)
    foreign_processes.hold(running)
    foreign_processes.queue(queued)
    add_attempts(failed, 2)
    process = foreign_processes.hold(died)
    process.kill()
    process.wait()
    for job in (done, running, *later):
        job.folder.mkdir(exist_ok=True)
        (job.folder / "out.txt").touch()

    incomplete = states.read_state(folder).in_state(*upkeep.INCOMPLETE)
    assert [status.job for status in incomplete] == [failed, died, new, *later]
    foreign_processes.queue(later[0])
    foreign_processes.hold(later[1])
    assert len(upkeep.delete_jobs(folder, incomplete)) == 3
    assert all((job.folder / "out.txt").exists() for job in (done, running, *later))
    assert not any(job.folder.exists() for job in (died, failed, new))
    assert read_folders(folder) == {job.folder for job in (done, running, queued, *later)}


def test_cancel_stops_processes_here_and_lists_processes_elsewhere(sweep, foreign_processes):
    folder, (job, foreign, *_) = sweep
    process = foreign_processes.hold(job)
    elsewhere = foreign_processes.hold(foreign, host="another machine")
    cancelled = carft("cancel", folder, "--yes")
    assert process.wait(10) == -signal.SIGTERM and elsewhere.poll() is None
    assert cancelled.returncode == 1 and "1 job stopped" in cancelled.stdout
    assert "another machine, process" in cancelled.stderr
    assert "which cannot be reached" in cancelled.stderr


@pytest.mark.parametrize("answer", ["n\n", "", "\n", "y\n"])
def test_clean_deletes_jobs_only_after_a_yes(sweep, monkeypatch, answer):
    """The empty answer is Ctrl-D, which ends standard input."""
    folder, (job, *_) = sweep
    add_attempts(job, 1)
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    if answer == "y\n":
        done = carft("clean", folder, "--incomplete")
        assert "About to delete 8 jobs: 7 not launched, 1 interrupted." in done.stdout
        assert "8 jobs deleted" in done.stdout and not job.folder.exists()
    else:
        with pytest.raises(SystemExit, match="0"):
            carft("clean", folder, "--incomplete")
        assert job.folder.is_dir()
