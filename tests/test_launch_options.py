"""Options of launchers, their file, and the resources of a machine."""

import pytest

from domainbed_carft import launchers, machine
from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import options
from domainbed_carft.launchers.options import PoolOptions, SlurmOptions
from domainbed_carft.launchers.pool import Pool


@pytest.fixture(autouse=True)
def unset_variables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(options.VARIABLE, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("name", "wrong_options", "problems"),
    [
        (
            "slurm",
            {"partitoin": "gpu", "array_cap": "many", "gpus": -1, "cpus": 2, "memory_gb": 0},
            [
                "no option of slurm is called 'partitoin'; did you mean partition?",
                "array_cap is 'many', expected a whole number",
                "gpus is -1, expected at least 0",
                "memory_gb is 0, expected",
            ],
        ),
        ("slrum", {"cpus": 1}, ["'slrum'; did you mean slurm? Valid: dummy, local, pool, slurm"]),
        ("pool", {"jobs": 0, "gpus": 0}, ["jobs is 0, expected at least 1", "gpus is 0, expected"]),
        ("dummy", {"gpus": 2}, ["no option of dummy is called 'gpus'. Valid: none"]),
    ],
)
def test_invalid_options_raise_error_with_all_problems(name, wrong_options, problems):
    with pytest.raises(CarftError) as raised:
        launchers.make(name, wrong_options)
    assert all(problem in str(raised.value) for problem in problems)
    assert len(raised.value.problems) == len(problems)


def test_slurm_options_become_parameters_of_submitit():
    slurm_options = {"partition": "gpu", "time": "2-0", "gpus": "1", "cpus": 4, "memory_gb": "7.5"}
    slurm_options["extra"] = ["constraint=a100|h100", "--mail-type=END", "exclusive"]
    parameters = launchers.make("slurm", slurm_options).parameters(after="17")
    assert (parameters["gpus_per_node"], parameters["mem"]) == (1, "7680MB")
    assert parameters["partition"] == "gpu" and "account" not in parameters
    assert parameters["additional_parameters"] == {
        "requeue": True,
        "time": "2-0",
        "dependency": "afterany:17",
        "constraint": "a100|h100",
        "mail_type": "END",
        "exclusive": True,
    }


def test_options_file_is_read_for_domainbeds_sweep_only(tmp_path, monkeypatch, capsys):
    (tmp_path / "launchers.yaml").write_text("pool: {jobs: 3, jobs_per_gpu: 2}\nslurm:\n")
    pool_options = options.resolve("pool", options.read_file("pool"))
    assert pool_options == PoolOptions(jobs=3, jobs_per_gpu=2)
    assert capsys.readouterr().err == f"pool: options read from {tmp_path}/launchers.yaml\n"
    assert launchers.make("pool").options == PoolOptions()  # carft sweep does not read the file

    cluster_file = tmp_path / "a cluster's.yaml"
    cluster_file.write_text(
        "slurm:\n  time: 1:30:00\n  partition:\n  setup: module load cuda\n"
        "  extra: {exclusive: true, nice: 5}\n"
    )
    monkeypatch.setenv(options.VARIABLE, str(cluster_file))
    assert options.resolve("slurm", options.read_file("slurm")) == SlurmOptions(
        time="1:30:00", setup=("module load cuda",), extra={"exclusive": True, "nice": "5"}
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("pool: {job: 3}", "no option of pool is called 'job'; did you mean jobs?"),
        ("- pool", "expected names of launchers (dummy, local, pool, slurm), each with its"),
        ("pool: {", "this is not YAML"),
        ("pool:\n  jobs: 1\n  jobs: 2\n", "launchers.yaml:3: the key 'jobs' appears twice"),
        ("pool: {jobs: [1]}", "pool: jobs is [1], expected a whole number"),
        (None, "launchers.yaml cannot be read: [Errno 2] No such file"),
    ],
)
def test_invalid_options_file_is_problem_of_launcher(tmp_path, monkeypatch, content, message):
    monkeypatch.setenv(options.VARIABLE, "launchers.yaml")
    if content is not None:
        (tmp_path / "launchers.yaml").write_text(content)
    (problem,) = launchers.LAUNCHERS["pool"].problems("OUT")
    assert message in problem and "\n" not in problem


@pytest.mark.parametrize(
    ("gpus", "jobs", "pool_options", "width"),
    [
        ("", 100, {}, 6),
        ("", 2, {}, 2),
        ("0,1", 100, {}, 2),
        ("0,1", 100, {"jobs": 4}, 4),
        ("0,1", 100, {"jobs_per_gpu": 3}, 6),
        ("0,1", 100, {"jobs": 4, "jobs_per_gpu": 1}, 2),
        ("", 100, {"jobs_per_gpu": 3}, 6),
    ],
)
def test_pool_slots_depend_on_cores_and_gpus(monkeypatch, gpus, jobs, pool_options, width):
    monkeypatch.setattr(machine, "cores", lambda root=None: 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert len(Pool(PoolOptions(**pool_options)).slots(jobs)) == width


@pytest.mark.parametrize(("name", "count"), [("pool", 2), ("local", 1)])
def test_gpus_option_gives_job_several_gpus_with_one_process_each(monkeypatch, name, count):
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
    monkeypatch.setenv("DOMAINBED_PROCESSES", "3")  # set by users without GPUs
    assert launchers.make(name).slots(1)[0]["OMP_NUM_THREADS"] == "4"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(CarftError, match=f"{name}: gpus is 2, expected at most 1"):
        launcher([])


@pytest.mark.parametrize("on_gpu", [False, True])
def test_threads_and_loaders_add_up_to_cores(on_gpu):
    shares = {cores: machine.divide_cores(cores, on_gpu) for cores in range(1, 130)}
    assert all(min(share) >= 0 and share[0] >= 1 for share in shares.values())
    # With one core, a loader and the thread of the GPU share it.
    assert {n for n, share in shares.items() if sum(share) != n} == ({1} if on_gpu else set())


def test_cgroup_quotas_limit_cores_and_memory(tmp_path):
    all_cores, all_memory = machine.cores(tmp_path), machine.memory(tmp_path)
    group = tmp_path / "sys/fs/cgroup/a/b"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    assert (machine.cores(tmp_path), machine.memory(tmp_path)) == (all_cores, all_memory)

    (group.parent / "cpu.max").write_text("50000 100000\n")
    (group.parent / "memory.max").write_text("1048576\n")
    assert (machine.cores(tmp_path), machine.memory(tmp_path)) == (1, 1 << 20)


def test_gpus_are_listed_by_variable_or_nvidia_smi(tmp_path, monkeypatch):
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
