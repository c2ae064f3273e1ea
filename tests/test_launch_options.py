"""Options of launchers and the file they come from, what a machine has, what SLURM is told."""

import ctypes
import json
import os
import signal
import subprocess
import sys

import pytest
from sweep_folders import HOLD
from sweep_jobs import commands, events, run

from domainbed_carft import launchers, machine
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.launchers import options, slurm
from domainbed_carft.launchers.options import PoolOptions, SlurmOptions
from domainbed_carft.launchers.pool import Pool
from domainbed_carft.launchers.slurm import Slurm


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(options.VARIABLE, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_all_option_problems_are_listed_at_once_with_valid_values():
    with pytest.raises(CarftError) as raised:
        launchers.make("slurm", {"partitoin": "gpu", "array_cap": "many", "gpus": -1, "cpus": 2})

    message = str(raised.value)

    assert "no option of slurm is called 'partitoin'; did you mean partition?" in message
    assert "array_cap is 'many', expected a whole number" in message
    assert "gpus is -1, expected at least 0" in message
    assert "cpus is" not in message

    with pytest.raises(CarftError, match=r"'slrum'; did you mean slurm\? Valid: dummy, local, p"):
        launchers.make("slrum", {"partition": "gpu"})
    with pytest.raises(CarftError, match="no option of local is called 'jobs'"):
        launchers.make("local", {"jobs": 2})
    with pytest.raises(CarftError, match="no option of dummy is called 'gpus'. Valid: none"):
        launchers.make("dummy", {"gpus": 2})


def test_options_become_parameters_of_submitit():
    """SLURM's spellings of a time are SLURM's to read."""
    slurm_options = {"partition": "gpu", "time": "2-0", "gpus": "1", "cpus": 4, "memory_gb": "7.5"}
    slurm_options["extra"] = ["constraint=a100|h100", "--mail-type=END", "exclusive"]
    parameters = launchers.make("slurm", slurm_options).parameters(after="17")

    assert parameters["gpus_per_node"] == 1
    assert parameters["mem"] == "7680MB"
    assert parameters["partition"] == "gpu"
    assert parameters["additional_parameters"] == {
        "requeue": True,
        "time": "2-0",
        "dependency": "afterany:17",
        "constraint": "a100|h100",
        "mail_type": "END",
        "exclusive": True,
    }
    assert "account" not in parameters


@pytest.fixture
def submitted(monkeypatch):
    """What is submitted by arrays in place of SLURM's, of which there is one."""
    submitted_jobs = []

    def array(self, sweep, jobs, after):
        if after:
            raise RuntimeError("no more\nof yours")
        submitted_jobs.extend(jobs)
        return [f"1_{number}" for number in range(len(jobs))]

    monkeypatch.setattr(Slurm, "problems", lambda self, sweeps: [])
    monkeypatch.setattr(slurm, "largest_array", lambda: None)
    monkeypatch.setattr(Slurm, "_submit_array", array)
    return submitted_jobs


def test_a_refused_submission_is_reported_and_earlier_arrays_stay(tmp_path, submitted, monkeypatch):
    for number in range(5):
        (tmp_path / f"job{number:02}").mkdir()
    monkeypatch.setattr(slurm, "largest_array", lambda: 3)
    message = "refused: no more of yours. 3 of 5 jobs in .* are submitted; launch the rest later"
    with pytest.raises(CarftError, match=message):
        run("slurm", commands(tmp_path, 5))

    # DomainBed's sweep would pass over jobs whose folders are there.
    assert sorted(path.name for path in tmp_path.glob("job*")) == ["job00", "job01", "job02"]

    (launched,) = tmp_path.glob("launches/*.json")
    assert json.loads(launched.read_text())["jobs"] == {f"job0{n}": f"1_{n}" for n in range(3)}


def test_an_array_element_requeues_itself_while_its_job_is_held(
    tmp_path, foreign_processes, submitted, monkeypatch
):
    """What SLURM would start, in a job that nobody started; what SLURM is told is kept."""
    requeued = []
    monkeypatch.setattr(slurm, "call", lambda *words: requeued.append(words[-1]))
    monkeypatch.setattr(slurm, "_LOCK_PATIENCE", 0.1)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # they are the tests' own
    run("slurm", commands(tmp_path, 1), gpus=2)
    (element,) = submitted

    assert element.environment["DOMAINBED_PROCESSES"] == "2"

    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    process = foreign_processes.start(HOLD, tmp_path / "job00")
    with pytest.raises(SystemExit) as exit_raised:
        element()

    assert exit_raised.value.code == 75 and requeued == ["12_3"]

    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")  # as SLURM itself counts
    with pytest.raises(CarftError, match=rf"process {process.pid}"):
        element()

    assert len(requeued) == 1 and not JobFolder(tmp_path / "job00").attempts()  # no failure

    process.kill()
    process.wait()
    element()

    assert events(tmp_path / "job00") == ["start", "end"]


def test_domainbeds_own_sweep_reads_options_from_a_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "launchers.yaml").write_text("pool: {jobs: 3, jobs_per_gpu: 2}\nslurm:\n")
    assert registered("pool") == PoolOptions(jobs=3, jobs_per_gpu=2)
    assert capsys.readouterr().err == f"pool: options read from {tmp_path}/launchers.yaml\n"
    assert launchers.make("pool").options == PoolOptions()  # of carft sweep

    cluster_file = tmp_path / "a cluster's.yaml"
    cluster_file.write_text(
        "slurm:\n  time: 1:30:00\n  partition:\n  setup: module load cuda\n"
        "  extra: {exclusive: true, nice: 5}\n"
    )
    monkeypatch.setenv(options.VARIABLE, str(cluster_file))

    assert registered("slurm") == SlurmOptions(
        time="1:30:00", setup=("module load cuda",), extra={"exclusive": True, "nice": "5"}
    )


def registered(name):
    """The options of a launcher in DomainBed's registry."""
    return launchers.LAUNCHERS[name]._make().options


@pytest.mark.parametrize(
    "content, message",
    [
        ("pool: {job: 3}", "no option of pool is called 'job'; did you mean jobs?"),
        ("- pool", "expected names of launchers (dummy, local, pool, slurm), each with its"),
        ("pool: {", "this is not YAML"),
        ("pool:\n  jobs: 1\n  jobs: 2\n", "launchers.yaml:3: the key 'jobs' appears twice"),
        ("pool: {jobs: [1]}", "pool: jobs is [1], expected a whole number"),
        (None, "launchers.yaml cannot be read: [Errno 2] No such file"),
    ],
)
def test_an_invalid_options_file_is_refused_in_one_line(
    tmp_path, monkeypatch, content, message, capsys
):
    monkeypatch.setenv(options.VARIABLE, "launchers.yaml")
    if content is not None:
        (tmp_path / "launchers.yaml").write_text(content)
    (problem,) = launchers.LAUNCHERS["pool"].problems("OUT")

    assert message in problem and "\n" not in problem
    assert "launchers.yaml" in problem + capsys.readouterr().err


def test_the_pool_is_as_wide_as_cores_and_gpus_allow(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(machine, "cores", lambda root=None: 6)

    def width(gpus, jobs_in_all=100, **pool_options):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        return len(Pool(PoolOptions(**pool_options)).slots(jobs_in_all))

    assert width("") == 6
    assert width("", jobs_in_all=2) == 2
    assert width("0,1") == 2
    assert width("0,1", jobs=4) == 4
    assert width("0,1", jobs_per_gpu=3) == 6
    assert width("0,1", jobs=4, jobs_per_gpu=1) == 2
    assert width("", jobs_per_gpu=3) == 6


@pytest.mark.parametrize("name, count", [("pool", 2), ("local", 1)])
def test_a_job_has_several_gpus_and_a_process_on_each(monkeypatch, name, count):
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(machine, "cores", lambda root=None: 16)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,GPU-1,9")
    launcher = launchers.make(name, {"gpus": "2"})
    slots = launcher.slots(100)

    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3,5", "7,GPU-1"][:count]

    for slot in slots:
        assert (slot["DOMAINBED_PROCESSES"], slot["OMP_NUM_THREADS"]) == ("2", "1")
        assert slot["DOMAINBED_CORES"] == str(16 // count)

    assert "DOMAINBED_PROCESSES" not in launchers.make(name).slots(1)[0]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DOMAINBED_PROCESSES", "3")  # as is the way without GPUs
    assert launchers.make(name).slots(1)[0]["OMP_NUM_THREADS"] == "4"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    message = f"{name}: gpus is 2, expected at most the 1 of this machine"
    assert message in "".join(launchers.problems(launcher, []))

    with pytest.raises(CarftError, match=message):
        launcher([])


def test_cgroup_quotas_limit_the_cores(tmp_path):
    """Of the process's own group and those around it; version 2, as current systems have it."""
    all_cores = machine.cores(tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/a/b/cpu.max").write_text("max 100000\n")

    assert machine.cores(tmp_path) == all_cores

    (tmp_path / "sys/fs/cgroup/a/cpu.max").write_text("50000 100000\n")
    assert machine.cores(tmp_path) == 1

    machine_memory = machine.memory(tmp_path)
    (tmp_path / "sys/fs/cgroup/a/b/memory.max").write_text("max\n")
    assert machine.memory(tmp_path) == machine_memory > 1 << 20

    (tmp_path / "sys/fs/cgroup/a/memory.max").write_text("1048576\n")
    assert machine.memory(tmp_path) == 1 << 20


def test_gpus_are_listed_by_the_variable_or_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-77,-1")
    assert machine.gpus() == ["2", "GPU-77"]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []

    listing = "GPU 0: A (UUID: GPU-1)\n  MIG 1g Device 0: (UUID: x)\nGPU 1: A\nGPU 2: A"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n[ $1 = -L ] && echo '{listing}'\n")
    tool.chmod(0o755)

    assert machine.gpus() == ["0", "1", "2"]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator")
def test_a_process_keeps_freed_memory_for_reuse():
    allocation = "[b'x' * (64 << 20) for _ in range(1)]; "
    code = (
        "import resource; from domainbed_carft import machine; {}"
        "told = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; "
        f"{allocation} before = told(); {5 * allocation} print(told() - before)"
    )
    small_pages = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    faults = [
        int(
            subprocess.check_output(
                [sys.executable, "-c", code.format(preparation)], env=small_pages
            )
        )
        for preparation in ("", "machine.keep_freed_memory(); ")
    ]

    assert faults[0] > 5 * 64 << 8, faults  # each page of 4 KiB is asked for anew
    assert faults[1] < faults[0] / 100, faults
