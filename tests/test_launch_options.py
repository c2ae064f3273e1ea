"""Options of launchers, the file they may come from, and what a machine is found to have."""

import dataclasses
import os
import subprocess
import sys

import pytest
import warm

from domainbed_carft import launchers, machine
from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import settings, slurm, values
from domainbed_carft.launchers.options import PoolOptions, SlurmOptions
from domainbed_carft.launchers.pool import Pool
from domainbed_carft.launchers.slurm import Slurm


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_all_problems_are_told_at_once_with_what_would_be_right():
    with pytest.raises(CarftError) as raised:
        launchers.make("slurm", {"partitoin": "gpu", "time": "soon", "gpus": -1, "cpus": 2})
    message = str(raised.value)
    assert "no option of slurm called 'partitoin'; did you mean partition?" in message
    assert "time = 'soon': expected minutes from 1, or MM:SS" in message
    assert "gpus = -1: expected a whole number from 0" in message
    assert "array_cap" in message and "cpus =" not in message


def test_an_unknown_launcher_is_told_with_those_there_are():
    with pytest.raises(CarftError, match=r"'slrum'; did you mean slurm\? \(there are: dummy, l"):
        launchers.make("slrum", {"partition": "gpu"})
    with pytest.raises(CarftError, match=r"no option of local called 'jobs' \(there are: none\)"):
        launchers.make("local", {"jobs": 2})


def test_options_are_checked_however_they_are_made():
    with pytest.raises(CarftError, match=r"jobs = 0: .*; memory_gb = 'lots'"):
        PoolOptions(jobs=0, memory_gb="lots")
    assert PoolOptions(jobs="3", memory_gb="1.5") == PoolOptions(jobs=3, memory_gb=1.5)
    with pytest.raises(CarftError, match=r"signal_seconds = 120 is too long .* more than 150 s"):
        launchers.make("slurm", {"time": 2})
    with pytest.raises(CarftError, match="signal_seconds = 30 is too long"):
        launchers.make("slurm", {"time": 1, "signal_seconds": 30})


def test_each_option_has_a_help_text():
    for options in launchers.OPTIONS.values():
        for field in dataclasses.fields(options):
            assert field.metadata["help"] and callable(field.metadata["convert"])


@pytest.mark.parametrize(
    "spelled, meant",
    [("90", 90), (90, 90), ("0:30", 1), ("5:00", 5), ("5:01", 6), ("1:30:00", 90), ("2-0", 2880),
     ("1-12", 2160), ("1-12:30", 2190), ("0-0:0:1", 1)],
)  # fmt: skip
def test_slurms_spellings_of_a_time(spelled, meant):
    assert values.minutes(spelled) == meant


@pytest.mark.parametrize("spelled", ["", "0", "1:2:3:4", "-5", "1-", "UNLIMITED", None, 1.5, True])
def test_other_spellings_of_a_time_are_wrong(spelled):
    with pytest.raises(ValueError, match="expected minutes from 1"):
        values.minutes(spelled)


def test_extra_parameters_are_a_mapping_or_texts():
    meant = {"constraint": "a100|h100", "mail_type": "END", "exclusive": True}
    texts = ["constraint=a100|h100", "--mail-type=END", "exclusive"]
    assert values.parameters(texts) == meant
    assert values.parameters({**meant, "exclusive": "true"}) == meant


@pytest.mark.parametrize(
    "extra, told",
    [
        ("time=5", "'time' is said by time"),
        ({"cpus-per-task": 2}, "'cpus-per-task' is said by cpus"),
        ("output=x", "'output' is set by us"),
        ("a=b\n#SBATCH --wrap=x", "expected text on one line"),
        ("a b=c", "'a b' is no parameter of sbatch"),
    ],
)
def test_extra_parameters_that_would_do_harm_are_refused(extra, told):
    with pytest.raises(CarftError) as raised:
        SlurmOptions(extra=extra)
    assert told in str(raised.value)


def test_what_submitit_is_given():
    options = SlurmOptions(partition="gpu", time="2-0", gpus=1, cpus=4, memory_gb=7.5, extra="x=y")
    given = Slurm(options).parameters(after="17")
    assert given["time"] == 2880 and given["gpus_per_node"] == 1 and given["mem"] == "7680MB"
    assert given["additional_parameters"] == {
        "requeue": True, "x": "y", "dependency": "afterany:17"
    }  # fmt: skip
    assert "account" not in given


def test_arrays_of_several_folders_wait_for_one_another(tmp_path, monkeypatch):
    """So that the cap holds over all variants of a sweep."""
    waited = []

    def submit(self, sweep, jobs, after):
        waited.append((sweep.name, len(jobs), after))
        return [f"{len(waited)}_{n}" for n in range(len(jobs))]

    monkeypatch.setattr(slurm, "_submitit", lambda: None)
    monkeypatch.setattr(slurm, "largest_array", lambda: 2)
    monkeypatch.setattr(Slurm, "_submit_array", submit)
    jobs = [f"python x --output_dir {tmp_path}/{v}/job{n}" for v in "ab" for n in range(3)]
    assert launchers.make("slurm")(jobs) is None
    assert waited == [("a", 2, None), ("a", 1, "1"), ("b", 2, "2"), ("b", 1, "3")]

    def refuse(self, sweep, jobs, after):
        raise RuntimeError("no more")

    monkeypatch.setattr(Slurm, "_submit_array", refuse)
    with pytest.raises(CarftError, match="no more. 6 jobs are left"):
        launchers.make("slurm")(jobs)


def test_a_file_in_the_current_folder_or_named_by_a_variable(tmp_path, monkeypatch):
    (tmp_path / "launchers.yaml").write_text("pool: {jobs: 3, memory_gb: 2}\nslurm:\n")
    assert launchers.make("pool").options == PoolOptions(jobs=3, memory_gb=2)
    # A flag wins; one that is not set does not.
    chosen = launchers.make("pool", {"jobs": 5, "memory_gb": None}).options
    assert chosen == PoolOptions(jobs=5, memory_gb=2)
    (tmp_path / "launchers.yaml").write_text("slurm: {signal_seconds: 30}")
    assert launchers.make("slurm", {"time": 2}).options.time == 2  # would be too short otherwise
    other = tmp_path / "a cluster's.yaml"
    other.write_text("slurm:\n  time: 1:30:00\n  partition:\n  extra: {exclusive: true}\n")
    monkeypatch.setenv(settings.VARIABLE, str(other))
    assert launchers.make("pool").options == PoolOptions()
    # YAML itself would read 1:30:00 as 5400.
    chosen = launchers.make("slurm").options
    assert chosen == SlurmOptions(time=90, extra={"exclusive": True})


@pytest.mark.parametrize(
    "content, told",
    [
        ("pool: {job: 3}\nslrm: {}\nslurm: [1]", "option of pool called 'job'; did you mean jobs?"),
        ("pool: {job: 3}\nslrm: {}\nslurm: [1]", "no launcher called 'slrm'; did you mean slurm?"),
        (
            "pool: {job: 3}\nslrm: {}\nslurm: [1]",
            "slurm should map options to values, but is ['1']",
        ),
        ("- pool", "should map launchers (dummy, local, pool, slurm) to their options"),
        ("pool: {", "is not YAML"),
    ],
)
def test_a_wrong_file_is_told_with_all_that_is_wrong(tmp_path, content, told):
    (tmp_path / "launchers.yaml").write_text(content)
    with pytest.raises(CarftError) as raised:
        launchers.make("local")
    assert told in str(raised.value) and str(raised.value).startswith("launchers.yaml")


def test_a_file_that_is_not_there_is_told_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv(settings.VARIABLE, str(tmp_path / "gone.yaml"))
    with pytest.raises(CarftError, match=r"gone.yaml cannot be read: .*DOMAINBED_CARFT_LAUNCHER"):
        launchers.make("pool")


def test_the_pool_is_as_wide_as_cores_gpus_and_memory_allow(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(machine, "cores", lambda: 6)
    monkeypatch.setattr(machine, "available_memory", lambda: 10 * 2**30)

    def width(gpus, in_all=100, **options):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        return len(Pool(PoolOptions(**options)).slots(in_all))

    assert width("") == 6
    assert width("", in_all=2) == 2
    assert width("0,1") == 2
    assert width("0,1", jobs=4) == 4
    assert width("0,1", jobs_per_gpu=3) == 6
    assert width("0,1", jobs=4, jobs_per_gpu=1) == 2
    assert width("", memory_gb=4) == 2
    assert width("", memory_gb=40) == 1  # and not none
    with pytest.raises(CarftError, match="jobs_per_gpu = 2, but there is no GPU"):
        width("", jobs_per_gpu=2)


def test_the_cores_are_those_this_process_may_use():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to cores")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert launchers.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_quotas_and_limits_of_cgroups_version_2(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    assert machine.cpu_quota(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", "250000 100000\n")
    assert machine.cpu_quota(tmp_path) == 2.5
    write(tmp_path, "proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   50 kB\n")
    assert machine.available_memory(tmp_path) == 50 * 1024
    write(tmp_path, "sys/fs/cgroup/a/memory.max", "30000\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.current", "10000\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.current", "9000\n")
    assert machine.available_memory(tmp_path) == 20000


def test_quotas_and_limits_of_cgroups_version_1(tmp_path):
    write(tmp_path, "proc/self/cgroup", "3:cpu,cpuacct:/x\n4:memory:/x\n1:name=systemd:/y\n")
    assert machine.available_memory(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n")
    assert machine.cpu_quota(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    write(tmp_path, "proc/meminfo", "MemAvailable:   50 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.usage_in_bytes", "7\n")
    assert machine.available_memory(tmp_path) == 50 * 1024


def test_gpus_are_listed_by_the_variable_or_by_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-77,-1")
    assert machine.gpus() == ["2", "GPU-77"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    told = "GPU 0: A (UUID: GPU-1)\n  MIG 1g Device 0: (UUID: x)\nGPU 1: A (UUID: GPU-2)"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n[ $1 = -L ] && echo '{told}'\n")
    tool.chmod(0o755)
    assert machine.gpus() == ["0", "1"]


def test_without_slurm_or_submitit_the_launcher_says_what_to_do(tmp_path, monkeypatch):
    job = f"python x --output_dir {tmp_path}/job"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CarftError, match="sbatch, srun, squeue, scontrol cannot be found on PATH"):
        launchers.make("slurm")([job])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(CarftError, match="needs the package submitit: .* -m pip install 'submitit"):
        launchers.make("slurm")([job])


def test_launchers_are_cheap_to_import():
    heavy = "torch submitit yaml domainbed numpy".split()
    code = f"import sys, domainbed_carft.launchers; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_domainbeds_sweep_tells_a_wrong_option_before_it_makes_a_folder(tmp_path):
    """A job whose folder is there counts as launched, and would not be launched again."""
    command = ["-m", "domainbed.scripts.sweep", "launch", "--command_launcher"]
    command += ["pool", "--algorithms", "ERM", "--datasets", "Debug28", "--data_dir", "data"]
    command += ["--output_dir", "out", "--single_test_envs", "--skip_confirmation"]
    (tmp_path / "launchers.yaml").write_text("pool: {jobs: many}")
    done = warm.run(*command)
    assert done.returncode == 2
    told = "launchers.yaml: pool: jobs = 'many': expected a whole number from 1."
    assert done.stderr.splitlines()[-1] == f"- {told}"
    assert not (tmp_path / "out").exists()
