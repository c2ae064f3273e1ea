"""`train --log`: what TensorBoard and W&B read is what results.jsonl has, whatever happened.

TensorBoard's files are read by its own EventAccumulator. What W&B's own client sends, while the
run goes on or by `wandb sync`, is received by a server of ours (`wandb_server`).
"""

from __future__ import annotations

import json
import math
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from domainbed import command_launchers
from domainbed.lib import checkpoints, optional_library, scalar_logs, tensorboard_log
from domainbed.scripts import sweep, train

from . import fakes, wandb_server
from .conftest import PLUGIN
from .test_full_disk import mounted
from .test_resume import ended, forked, run, wait_until

pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
WITHOUT_WANDB = subprocess.run(
    [sys.executable, "-c", "import wandb; wandb.__version__"], capture_output=True
).returncode
needs_wandb = pytest.mark.skipif(bool(WITHOUT_WANDB), reason="wandb is not installed")

pytestmark = pytest.mark.usefixtures("registered", "quiet_wandb")

STEPS = [0, 2, 4, 6]
NAME = "LinearSGD_Debug28_test0_trial0_hparams0"


def arguments(folder: Path, *more: str, log: tuple[str, ...] = ("tensorboard", "wandb")):
    command = "--algorithm LinearSGD --dataset Debug28 --workers 0 --steps 7 --checkpoint_freq 2"
    hparams = ["--hparams", '{"batch_size": 4}', "--output_dir", str(folder)]
    return [*command.split(), *hparams, *more, *(["--log", *log] if log else [])]


@pytest.fixture
def quiet_wandb(monkeypatch, tmp_path_factory):
    """Offline, without reports to anybody, and with nobody's login or settings."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "DOMAINBED_LOG"))]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def server(monkeypatch):
    """A server, to which nothing goes unless the mode is online or something is synced."""
    made = wandb_server.Server()
    with wandb_server.serving(made):
        monkeypatch.setenv("WANDB_BASE_URL", made.url)
        monkeypatch.setenv("WANDB_API_KEY", wandb_server.KEY)
        yield made


def recorded(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and all numbers of the records, found here in another way than in the harness."""
    found = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        numbers = {name: v for name, v in record.items() if type(v) in (int, float)}
        assert {*record} - {*numbers} == {"args", "hparams"}
        found.append((step, numbers))
    return found


def on_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in the one folder that is a run to TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = {path.parent for path in folder.glob("**/*tfevents*")}
    assert place.relative_to(folder) == Path("tensorboard") / NAME
    accumulator = EventAccumulator(str(place), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def assert_on_tensorboard(folder: Path) -> None:
    """TensorBoard keeps single precision."""
    records, curves = recorded(folder), on_tensorboard(folder)
    assert sorted(curves) == sorted(records[0][1])
    for name, points in curves.items():
        expected = [(step, float(np.float32(numbers[name]))) for step, numbers in records]
        assert points == expected, name


def assert_on_wandb(received: wandb_server.Run, folder: Path) -> None:
    """W&B adds names of its own, which begin with an underscore; a NaN is a word in JSON."""
    rows = [
        (row["_step"], {n: v for n, v in row.items() if n[0] != "_"}) for row in received.history
    ]
    assert rows == recorded(folder)


def sync(folder: Path, *flags: str) -> None:
    (place,) = (folder / "wandb").glob(f"*run-*-{run_id(folder)}")
    command = [sys.executable, "-m", "wandb", "sync", *flags, str(place)]
    env = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    where = env["HOME"]  # it writes into the current folder
    done = subprocess.run(command, env=env, cwd=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def run_id(folder: Path) -> str:
    return (folder / "wandb" / "domainbed-run-id").read_text()


@needs_wandb
def test_the_scalars_of_the_records_and_nothing_in_the_current_folder(
    command, tmp_path, server, monkeypatch
):
    monkeypatch.setenv("WANDB_RUN_GROUP", "a sweep")
    folder = tmp_path / "a sweep" / "run"
    finished = command("train", *arguments(folder, "--workers", "2"))
    assert finished.returncode == 0, finished.stderr
    assert [step for step, _ in recorded(folder)] == STEPS
    assert_on_tensorboard(folder)
    assert os.listdir(tmp_path) == ["a sweep"] and os.listdir(tmp_path / "a sweep") == ["run"]
    assert server.runs == {}  # offline
    sync(folder)
    received = server.runs[run_id(folder)]
    assert_on_wandb(received, folder)
    assert (received.project, received.name, received.group) == ("domainbed", NAME, "a sweep")
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    assert received.config["args"] == last["args"] and received.config["hparams"] == last["hparams"]
    assert "log" not in last["args"]
    for line in (f"TensorBoard: tensorboard --logdir {folder}", f"Weights & Biases: {folder}"):
        assert line in finished.stdout


def test_hparams_compare_runs_on_tensorboard(tmp_path):
    assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.util import tensor_util

    (path,) = (tmp_path / "tensorboard" / NAME).iterdir()
    values = [value for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    by_tag = {value.tag: value for value in values}
    content = by_tag["_hparams_/session_start_info"].metadata.plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["lr"].number_value == 1e-3
    assert session.hparams["algorithm"].string_value == "LinearSGD"
    assert session.hparams["test_envs"].string_value == "[0]"
    (text,) = tensor_util.make_ndarray(by_tag["args/text_summary"].tensor)
    assert json.loads(text)["checkpoint_freq"] == 2


def test_not_a_number_is_logged(tmp_path, monkeypatch):
    original = fakes.LinearSGD.update
    monkeypatch.setattr(
        fakes.LinearSGD, "update", lambda *args: {**original(*args), "loss": math.nan}
    )
    assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    points = on_tensorboard(tmp_path)["loss"]
    assert [step for step, _ in points] == STEPS and all(math.isnan(v) for _, v in points)


def killing(monkeypatch, number: int, at: int) -> None:
    """Let the next runs get a signal after a record is written and before it is logged."""
    original = scalar_logs.Logs.catch_up
    calls = []

    def catch_up(self, records):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
            time.sleep(0.01 if number == signal.SIGTERM else 60)
        original(self, records)

    monkeypatch.setattr(scalar_logs.Logs, "catch_up", catch_up)


@needs_wandb
def test_interrupted_runs_have_the_logs_of_one_that_was_not(tmp_path, server):
    """Killed between record and log, told to stop, killed at any time; logs are offline."""
    for number, at, status in (
        (signal.SIGKILL, 1, -signal.SIGKILL),
        (signal.SIGTERM, 1, 75),
    ):
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, number, at)
            assert run(arguments(tmp_path)) == status
    pid = forked(arguments(tmp_path))
    time.sleep(random.Random(time.time_ns()).uniform(0.0, 4.0))
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    begun = run_id(tmp_path)
    if not (tmp_path / "done").exists():  # it may have been faster than the signal
        assert run(arguments(tmp_path)) == 0
    assert [step for step, _ in recorded(tmp_path)] == STEPS
    assert_on_tensorboard(tmp_path)
    assert len(list((tmp_path / "tensorboard" / NAME).iterdir())) == 1
    sync(tmp_path)
    assert [*server.runs] == [run_id(tmp_path)]
    assert_on_wandb(server.runs[run_id(tmp_path)], tmp_path)
    assert begun == run_id(tmp_path)


@needs_wandb
@pytest.mark.slow
def test_what_was_synced_half_way_is_whole_after_the_next_sync(tmp_path, server, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, signal.SIGTERM, 2)
        assert run(arguments(tmp_path, log=("wandb",))) == 75
    sync(tmp_path)
    received = server.runs[run_id(tmp_path)]
    half = [row["_step"] for row in received.history]
    assert half == [0, 2]
    before = run_id(tmp_path)
    assert run(arguments(tmp_path, log=("wandb",))) == 0
    assert f"sent to Weights & Biases as {before}." in (tmp_path / "out.txt").read_text()
    sync(tmp_path)
    assert [row["_step"] for row in received.history] == half
    assert [*server.runs] == [before, run_id(tmp_path)]
    assert_on_wandb(server.runs[run_id(tmp_path)], tmp_path)


@needs_wandb
def test_online_a_killed_run_is_gone_on_with(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "0.2")
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, signal.SIGSTOP, 3)  # the third record is written, and not logged
        pid = forked(arguments(tmp_path, log=("wandb",)))
        wait_until(lambda: sum(len(one.lines) for one in server.runs.values()) == 2)
        wait_until(lambda: len(recorded(tmp_path)) == 3)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    changed = ("--workers", "1")  # as may be
    assert run(arguments(tmp_path, *changed, log=("wandb", "wandb"))) == 0
    (received,) = server.runs.values()
    assert_on_wandb(received, tmp_path)
    said = (tmp_path / "out.txt").read_text()
    assert f"Weights & Biases: {server.url}/someone/domainbed/runs/{run_id(tmp_path)}" in said


def test_logging_changes_no_record_and_no_draw(tmp_path):
    logged, plain = tmp_path / "logged", tmp_path / "plain"
    kinds = ("tensorboard",) if WITHOUT_WANDB else ("tensorboard", "wandb")
    assert run(arguments(logged, log=kinds)) == run(arguments(plain, log=())) == 0
    found = [recorded(folder) for folder in (logged, plain)]
    for records in found:
        for _, numbers in records:
            del numbers["step_time"]
    assert found[0] == found[1]
    assert not (plain / "tensorboard").exists() and not (plain / "wandb").exists()


def test_neither_library_is_loaded_unless_asked_for(tmp_path):
    code = (
        "import sys; from domainbed.scripts import train, sweep; train.main(sys.argv[1:]); "
        "print({'tensorboard', 'wandb'} & set(sys.modules))"
    )
    path = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(tmp_path, log=())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_a_missing_library_is_told_with_all_else_before_anything_is_loaded(
    tmp_path, capsys, monkeypatch
):
    for name in ("tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train.main(arguments(tmp_path, "--steps", "-1")) == 2
    said = capsys.readouterr().err
    assert "3 problems, nothing was run" in said and "--steps must be at least 0" in said
    assert "--log tensorboard needs tensorboard, which cannot be loaded" in said
    assert "pip install wandb, or pip install 'domainbed-carft[log]'" in said


def test_a_folder_called_as_a_library_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "some_library").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = optional_library.problems("some_library", "--log")
    assert "(it is not installed)" in problem


def test_the_variable_asks_for_all_jobs_and_the_flag_wins(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DOMAINBED_LOG", "tensorboard")
    assert run(arguments(tmp_path / "by variable", log=())) == 0
    assert_on_tensorboard(tmp_path / "by variable")
    assert run([*arguments(tmp_path / "by flag", log=()), "--log"]) == 0
    assert not (tmp_path / "by flag" / "tensorboard").exists()
    monkeypatch.setenv("DOMAINBED_LOG", "tensorboard,wandb")
    assert train.main(arguments(tmp_path / "wrong", log=())) == 2
    said = capsys.readouterr().err
    assert "DOMAINBED_LOG has 'tensorboard,wandb', expected names out of tensorboard, wandb" in said


@needs_wandb
def test_without_a_login_a_job_is_refused_and_asks_nobody(tmp_path, monkeypatch):
    """On a terminal, where W&B would ask."""
    monkeypatch.delenv("WANDB_MODE")
    inner, outer = pty.openpty()
    words = [sys.executable, "-m", "domainbed.scripts.train", *arguments(tmp_path)]
    words[words.index("LinearSGD")] = "ERM"
    process = subprocess.Popen(words, stdin=outer, stdout=outer, stderr=outer)
    try:
        assert process.wait(timeout=60) == 2
    finally:
        process.kill()
        os.close(outer)
    said = os.read(inner, 2**16).decode()
    os.close(inner)
    assert "1 problem, nothing was run" in said and "No API key configured" in said
    assert "`wandb login` first" in said and "WANDB_MODE=offline logs into" in said
    assert "Traceback" not in said and not (tmp_path / "results.jsonl").exists()


@needs_wandb
@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "ofline"), ("WANDB_API_KEY", "short")])
def test_wrong_settings_of_wandb_are_refused(tmp_path, monkeypatch, name, value):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv(name, value)
    assert run(arguments(tmp_path)) == 2
    said = (tmp_path / "err.txt").read_text()
    assert "--log wandb: " in said and ("ofline" in said or name in said)
    assert "Traceback" not in said


@needs_wandb
@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_told_before_training(tmp_path, monkeypatch):
    """With a status after which launchers try again: the arguments are right."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    assert run(arguments(tmp_path)) == 1
    said = (tmp_path / "err.txt").read_text()
    assert "train: Weights & Biases cannot be begun: " in said and "Traceback" not in said
    assert not (tmp_path / "results.jsonl").exists()


DYING = """
import os, signal, subprocess, sys, time
from domainbed import algorithms
from domainbed.scripts import train
update, calls, end = algorithms.LinearSGD.update, [], int(sys.argv[1])
def killing(self, *args):
    calls.append(1)
    if len(calls) == 4:
        mine = ["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="]
        children = subprocess.run(mine, capture_output=True, text=True).stdout.splitlines()
        (service,) = (line.split()[0] for line in children if "wandb" in line)
        os.kill(int(service), signal.SIGKILL)
        time.sleep(0.5)
    if len(calls) == end:
        os.kill(os.getpid(), signal.SIGTERM)
    return update(self, *args)
algorithms.LinearSGD.update = killing
sys.exit(train.main(sys.argv[2:]))
"""


@needs_wandb
def test_wandbs_process_dies_and_nothing_is_lost(tmp_path, server):
    """Neither where the run comes to its end nor where it is stopped after that."""
    path = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]
    for end, status in ((6, 75), (0, 0)):
        done = subprocess.run(
            [sys.executable, "-c", DYING, str(end), *arguments(tmp_path, "--checkpoint_freq", "1")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert done.stdout.count("Warning: Weights & Biases is not logged to any more") == 1
        (tmp_path / "done").unlink(missing_ok=True)
        if end == 6:
            (tmp_path / "state.pt").unlink()  # so that it dies once more, now in all seven steps
    assert_on_tensorboard(tmp_path)
    sync(tmp_path)
    assert_on_wandb(server.runs[run_id(tmp_path)], tmp_path)


@needs_wandb
@pytest.mark.slow
def test_the_network_fails_and_what_is_on_disk_can_be_sent_later(tmp_path, monkeypatch):
    server = wandb_server.Server()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    waiting, begin = os.pipe()
    original = fakes.LinearSGD.update

    def update(self, *args):
        if not getattr(self, "told", False):
            self.told = True
            (tmp_path / "begun").touch()
            os.read(waiting, 1)
        return original(self, *args)

    monkeypatch.setattr(fakes.LinearSGD, "update", update)
    folder = tmp_path / "run"
    with wandb_server.serving(server) as port:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        pid = forked(arguments(folder, log=("wandb",)))
        wait_until((tmp_path / "begun").exists)
    os.write(begin, b"x")
    assert ended(pid) == 0
    assert server.runs[run_id(folder)].history == [] and (folder / "done").exists()
    with wandb_server.serving(server, port):
        sync(folder, "--include-online")
    assert_on_wandb(server.runs[run_id(folder)], folder)


FULL = """
import contextlib, pathlib, sys
from domainbed import algorithms
from domainbed.scripts import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
filler = pathlib.Path(sys.argv[1]) / "filler"
update = algorithms.LinearSGD.update
for frees in (True, False):
    calls = []
    def filling(self, *args):
        calls.append(1)
        if len(calls) == 2:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        if len(calls) == 18 and frees:
            filler.unlink()
        return update(self, *args)
    algorithms.LinearSGD.update = filling
    assert train.main({arguments}) == 0
    if frees:
        points = EventAccumulator({place!r}).Reload().Scalars("loss")
        print("steps", [event.step for event in points], file=sys.stderr)
"""


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path):
    """Its file system is full for a while, then, in another run, to the end."""
    folder = tmp_path / "run"
    (folder / "tensorboard").mkdir(parents=True)
    place = str(folder / "tensorboard" / NAME)  # seen in the namespace of its file system only
    many = ("--steps", "20", "--checkpoint_freq", "1")
    code = FULL.format(place=place, arguments=arguments(folder, *many, log=("tensorboard",)))
    done = mounted(folder / "tensorboard", "size=64k", code)
    assert done.returncode == 0, done.stderr
    said = (folder / "out.txt").read_text()
    assert "Traceback" not in said + done.stderr
    warned = "Warning: TensorBoard is not logged to any more: [Errno 28] No space left on device"
    assert said.count(warned) == 2
    assert done.stderr.splitlines()[-1] == f"steps {list(range(20))}"
    assert said.count("Warning: TensorBoard has not got everything: ") == 1
    assert [step for step, _ in recorded(folder)] == 2 * list(range(20))


def test_a_log_that_cannot_be_begun_is_told_before_training(tmp_path):
    (tmp_path / "tensorboard").write_text("a file in the way")
    assert run(arguments(tmp_path, log=("tensorboard",))) == 1
    said = (tmp_path / "err.txt").read_text()
    assert said.startswith("train: TensorBoard cannot be begun: ") and "Traceback" not in said
    assert str(tmp_path / "tensorboard") in said and not (tmp_path / "results.jsonl").exists()


@needs_wandb
def test_restart_removes_the_logs_of_this_job_alone(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, signal.SIGTERM, 2)
        assert run(arguments(tmp_path)) == 75
    before = run_id(tmp_path)
    others = [
        tmp_path / "tensorboard" / "mine" / "events.out.tfevents.1.host",
        tmp_path / "wandb" / "offline-run-20260101_000000-mine" / "run-mine.wandb",
    ]
    for path in others:
        path.parent.mkdir()
        path.touch()
    assert run(arguments(tmp_path, "--restart", log=())) == 0
    assert all(path.exists() for path in others)
    assert not (tmp_path / "tensorboard" / NAME).exists()
    assert not list((tmp_path / "wandb").glob(f"*{before}*"))


def test_a_second_run_in_the_folder_is_logged_by_itself(tmp_path):
    """Records of two runs are in one file, as upstream has it; a log is one run's."""
    for _ in range(2):
        assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    assert [step for step, _ in recorded(tmp_path)] == [*STEPS, *STEPS]
    assert [step for step, _ in on_tensorboard(tmp_path)["loss"]] == STEPS


def test_states_of_before_there_were_logs_are_gone_on_with(tmp_path, monkeypatch):
    original = checkpoints.Files.state

    def state(self):
        return {name: v for name, v in original(self).items() if name != "begins_at"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Files, "state", state)
        killing(patch, signal.SIGTERM, 2)
        assert run(arguments(tmp_path, log=("tensorboard",))) == 75
    assert run(arguments(tmp_path, log=("tensorboard",))) == 0
    assert_on_tensorboard(tmp_path)


def test_names_of_runs_are_names_of_files():
    args = {"algorithm": "CARFT", "dataset": "/my data/pets & cars/", "test_envs": [0, 2]}
    args |= {"trial_seed": 1, "hparams_seed": 3}
    assert scalar_logs.name_of(args) == "CARFT_pets---cars_test0+2_trial1_hparams3"
    assert "_testnone_" in scalar_logs.name_of({**args, "test_envs": []})


def test_forgetting_where_nothing_was_logged(tmp_path):
    scalar_logs.forget(str(tmp_path))
    tensorboard_log.forget(str(tmp_path / "not there"))
    assert os.listdir(tmp_path) == []


def test_a_sweep_hands_it_on_to_its_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DOMAINBED_LOG", "")
    monkeypatch.setenv("WANDB_RUN_GROUP", "")
    monkeypatch.delenv("WANDB_RUN_GROUP")
    seen = []
    monkeypatch.setitem(
        command_launchers.REGISTRY,
        "dummy",
        lambda commands: seen.append((os.environ["DOMAINBED_LOG"], commands)),
    )
    words = ["launch", "--algorithms", "Still", "--datasets", "Debug28", "--n_hparams", "1"]
    words += ["--data_dir", "D", "--command_launcher", "dummy", "--skip_confirmation"]
    for flags in (["--log", "tensorboard"], []):
        folder = str(tmp_path / f"out{len(flags)}")
        assert sweep.main([*words, "--output_dir", folder, *flags]) == 0
        monkeypatch.setenv("DOMAINBED_LOG", "")
    (log, told), (nothing, plain) = seen
    assert (log, nothing) == ("tensorboard", "")
    assert [one.replace("out2", "out0") for one in told] == plain  # no part of what jobs are
    scalar_logs.hand_on(["wandb"], str(tmp_path / "my sweep") + "/")
    assert os.environ["WANDB_RUN_GROUP"] == "my sweep"
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert sweep.main([*words, "--output_dir", str(tmp_path / "no"), "--log", "tensorboard"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err and not (tmp_path / "no").exists()
