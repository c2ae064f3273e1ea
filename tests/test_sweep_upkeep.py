"""Retry, cancel and clean, while others are at work in the same folder."""

import io
import signal

import pytest
from sweep_folders import ended, finish, status

from domainbed_carft import cli
from domainbed_carft.jobs import manifest
from domainbed_carft.sweep import states, upkeep


def carft(capsys, command, folder, *flags, status=0):
    capsys.readouterr()
    assert cli.main(["sweep", command, str(folder), *flags]) == status
    output = capsys.readouterr()
    return output.err if status else output.out


def listed_folders(folder):
    return {job.folder for job in manifest.read(folder).jobs}


def test_retry_keeps_the_earlier_attempts(sweep, capsys):
    folder, (a, b, *_) = sweep
    ended(a, 1, 1, 1)
    ended(b, 2)
    output = carft(capsys, "retry", folder, "--only", "test environments 1")
    assert "1 of 2 failed jobs will be retried" in output
    assert [status(folder, job).state for job in (a, b)] == [states.FAILED, states.NOT_LAUNCHED]
    assert (b.folder / "attempts-1.jsonl").read_text().count("words of 2") == 1

    output = carft(capsys, "retry", folder, "--only", "DomainNet", status=1)
    assert "no failed job matches 'DomainNet'; for a list: carft sweep status" in output


def test_clean_removes_leftovers_of_done_jobs_only(sweep, capsys):
    folder, (done, unfinished, *_) = sweep
    finish(done)
    unfinished.folder.mkdir()
    for job in (done, unfinished):
        for name in ("state.pt", "model.pkl.part", "model.pkl", "results.jsonl"):
            (job.folder / name).write_text("x")
    cut = folder / f".deleted-{unfinished.folder.name}-12"  # a deletion that was cut short
    (cut / ("0" * 32)).mkdir(parents=True)
    assert "2 leftover files deleted" in carft(capsys, "clean", folder)

    names_left = {p.name for p in done.folder.iterdir()}
    assert names_left == {"model.pkl", "results.jsonl", "done"}
    assert (unfinished.folder / "state.pt").exists() and not cut.exists()
    assert len(listed_folders(folder)) == 8

    (done.folder / "kept.part").mkdir()
    stderr = carft(capsys, "clean", folder, status=1)
    assert "kept.part: " in stderr and stderr.endswith("; check this path and its permissions\n")


def test_clean_never_touches_done_running_or_queued_jobs(
    sweep, foreign_processes, monkeypatch, capsys
):
    """Nor one that is taken up while it asks."""
    folder, jobs = sweep
    done, running, queued, failed, died, new, *later = jobs
    finish(done)
    foreign_processes.hold(running)
    foreign_processes.queue(queued)
    ended(failed, 2)
    process = foreign_processes.hold(died)
    process.kill()
    process.wait()
    for job in (done, running, *later):
        job.folder.mkdir(exist_ok=True)
        (job.folder / "out.txt").touch()

    def meanwhile(yes):
        foreign_processes.queue(later[0])
        foreign_processes.hold(later[1])

    monkeypatch.setattr("domainbed_carft.cli.sweep.confirm", meanwhile)
    stdout = carft(capsys, "clean", folder, "--incomplete")
    assert "About to delete 5 jobs: 1 not launched, 3 interrupted, 1 failed." in stdout
    assert "\n3 jobs deleted" in stdout
    assert all((job.folder / "out.txt").exists() for job in (done, running, *later))
    assert not any(job.folder.exists() for job in (died, failed, new))
    assert listed_folders(folder) == {job.folder for job in (done, running, queued, *later)}

    stdout = carft(capsys, "clean", folder, "--incomplete")
    assert "There are no incomplete jobs to delete." in stdout


def test_cancel_stops_lock_holders_and_names_those_out_of_reach(sweep, foreign_processes, capsys):
    folder, (job, foreign, *_) = sweep
    process = foreign_processes.hold(job)
    elsewhere = foreign_processes.hold(foreign, host="another machine")
    stderr = carft(capsys, "cancel", folder, "--yes", status=1)
    assert process.wait(10) == -signal.SIGTERM
    assert "on another machine" not in stderr and "another machine, process" in stderr
    assert "which cannot be reached" in stderr
    assert elsewhere.poll() is None

    elsewhere.kill()
    elsewhere.wait()
    assert "No jobs are running or queued." in carft(capsys, "cancel", folder, "--yes")


def test_retry_clean_and_cancel_return_reports(sweep):
    folder, (done, failed, *_) = sweep
    finish(done)
    (done.folder / "state.pt").touch()
    ended(failed, 2)

    state = states.of_output(folder)
    assert state.as_dict()["counts"]["failed"] == 1 and not state.is_moving
    assert upkeep.clean(state) == upkeep.CleanReport(files=[done.folder / "state.pt"])
    retried = upkeep.retry(folder)
    assert [status.job.folder for status in retried.failed] == [failed.folder]
    assert retried.retried == retried.failed
    assert upkeep.cancel(state) == upkeep.CancelReport([], [], [])

    deleted = upkeep.delete_jobs(folder, state.statuses).jobs
    assert failed.folder in deleted and done.folder not in deleted
    assert listed_folders(folder) == {done.folder}


@pytest.mark.parametrize("answer", ["n\n", "", "\n"])
def test_only_a_yes_deletes_jobs(sweep, capsys, monkeypatch, answer):
    """Nor does Ctrl-D, which ends standard input."""
    folder, (job, *_) = sweep
    ended(job, 1)
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)

    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "clean", str(folder), "--incomplete"])
    assert left.value.code == 0
    assert capsys.readouterr().out.endswith("Nothing was done.\n")
    assert job.folder.is_dir()
