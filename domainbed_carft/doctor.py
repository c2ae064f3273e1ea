"""Whether a training job could start here, and how to fix what keeps it from starting.

`diagnose` makes the checks in a fresh interpreter, as a job would be started, since torch may be
broken: ``python -m domainbed_carft.doctor FILE [CHECK ...]``. After each check FILE gets a line of
JSON with its findings, so that a crash or a hang loses only that check. If you want, it also takes
two steps of training. No module is imported before its check.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from domainbed_carft import files, machine, process_variables
from domainbed_carft.errors import CarftWarning
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import DONE, last_line
from domainbed_carft.jobs.job import command as train_command
from domainbed_carft.launchers.attempt import describe_end
from domainbed_carft.plugin import SWITCH, Finder, switched_off
from domainbed_carft.version import __version__

# The states of a finding.
OK = "ok"
NOTE = "note"  # a job starts, but something may surprise its user
PROBLEM = "problem"  # no job starts, or its results do not count
SKIPPED = "skipped"  # not tried

# Seconds for all checks, and for the steps. All of OpenAI's weights are 4 GB to hash, and a network
# drive may be slow.
PATIENCE = 600.0

PACKAGE = os.path.dirname(os.path.abspath(__file__))

# Our dependencies: distribution -> the module that shows whether it works.
MODULES = {
    "clip-anytorch": "clip.model",
    "pillow": "PIL.Image",
    "submitit": "submitit",
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "orjson": "orjson",
    "pydantic": "pydantic",
    "ruamel.yaml": "ruamel.yaml",
    "tabulate": "tabulate",
    "jinja2": "jinja2",
}
# For a processor, carft data download, --log twice, and clip_backbone open_clip:... with
# SigLIP's tokenizer.
OPTIONAL = ("numba", "gdown", "tensorboard", "wandb", "open_clip_torch", "transformers")

# What our algorithms need of a host, and most hosts' training scripts import.
HOST_MODULES = (
    "domainbed",
    "domainbed.algorithms",
    "domainbed.hparams_registry",
    "domainbed.datasets",
)

TRAIN_SCRIPT = "domainbed/scripts/train.py"
# The modules of a checkout from which a training job imports all others.
STARTING_POINTS = ("algorithms", "hparams_registry", "datasets", "scripts.train")

SAFE_TORCH = (2, 10)

# Of the noise that `check_step` trains on: EmojiStyles with two environments left out.
INPUT_SHAPE = (3, 48, 48)
CLASS_COUNT = 10
DOMAIN_COUNT = 2

DEFAULT_BACKBONE = "ViT-B/16"  # of all data sets without a smaller CLIP of their own
DEFAULT_BACKBONE_SIZE = "345 MB"

# Seconds; each job imports as much, unless it is forked from a process that has.
SLOW_IMPORTS = 60.0

# Remedies.
FIX_ABOVE = "fix the problems above first"
RUN_BY_HAND = "run python -X faulthandler -m domainbed_carft.doctor /dev/stdout to see more"
CHOOSE_CACHE = f"set {process_variables.CACHE.name} to a writable folder on a disk with free space"
MOVE_ENVIRONMENT = "put the Python environment on a local disk, or into a container image"
TRAIN_A_STEP = "carft doctor --train takes two steps with it, on EmojiStyles"
FIX_EXTENSION = "fix the cause that the warning names; domainbed_carft.register() shows a traceback"

# The job of `train_two_steps`: its pictures and weights are in our package, its flags upstream's.
STEP_JOB = {
    "algorithm": "CARFT",
    "dataset": "EmojiStyles",
    "data_dir": "embedded",  # not read
    "test_envs": [0],
    "steps": 2,  # some forks evaluate after step 0 only
}
RESULTS = "results"  # a finding on what such a job leaves behind
_FRAME = re.compile(r'^  File "(/.+)", line (\d+)', re.MULTILINE)  # of a traceback
ACCURACY = re.compile(r"env\d+_(in|out)_acc")

# What pip installs a module by, where it is not the module's name.
DISTRIBUTIONS = {
    "pkg_resources": "'setuptools<82'",
    "clip": "clip-anytorch",
    "PIL": "pillow",
    "backpack": "backpack-for-pytorch",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@dataclass(frozen=True)
class Finding:
    """The result of looking at one thing: ``state`` is OK, NOTE, PROBLEM or SKIPPED.

    ``section`` and ``figures`` are those of a rehearsal, for `carft preflight`.
    """

    name: str
    state: str
    found: str
    remedy: str = ""
    section: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def diagnose(with_training: bool = False, patience: float = PATIENCE) -> list[Finding]:
    """The findings of all checks in a fresh interpreter, as a job would be started.

    The first says which domainbed was looked at. ``with_training`` also takes two steps by the
    `train` of that domainbed, if it has one and no check finds a problem. ``patience``: seconds for
    the checks, and for the steps. Raises nothing: what fails is a finding.
    """
    findings = sorted(run_checks(patience), key=lambda finding: finding.name != "domainbed")
    if not with_training:
        return findings

    if has_problem(findings):
        new_findings = [Finding("train", SKIPPED, "not tried", FIX_ABOVE)]
    else:
        new_findings = train_two_steps(patience)
    if not new_findings:
        return findings
    return [*(finding for finding in findings if finding.name != "train"), *new_findings]


def has_problem(findings: Iterable[Finding]) -> bool:
    """Whether something keeps a job from starting, or its results from counting."""
    return any(finding.state == PROBLEM for finding in findings)


def run_checks(patience: float = PATIENCE, names: Sequence[str] = ()) -> list[Finding]:
    """The findings of the checks ``names``, by default of all, in a fresh interpreter.

    A crash or a hang is one of them.
    """
    names = names or [*CHECKS]
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as folder:
        findings_file = Path(folder) / "findings"
        # No options, as when a job is started. `-m` puts the current folder first on the path, as
        # it does for `python -m domainbed.scripts.train`.
        arguments = ["-m", "domainbed_carft.doctor", str(findings_file), *names]
        ended = _run_python(arguments, Path(folder) / "output", patience)
        text = findings_file.read_text(encoding="utf-8") if findings_file.exists() else ""

    lines = text.splitlines()
    findings = [Finding(**fields) for line in lines for fields in json.loads(line)]
    if len(lines) < len(names):
        found = f"a fresh interpreter {ended.description}, during this check"
        findings.append(Finding(names[len(lines)], PROBLEM, found, RUN_BY_HAND))
    return findings


@dataclass(frozen=True)
class _EndedPython:
    """How an interpreter ended: ``exit_status`` is None if it was stopped.

    ``place``: where it failed, to print behind ``description``; "" if it printed no traceback.
    """

    exit_status: int | None
    description: str
    last_line: str  # of what it printed
    place: str = ""


def _run_python(arguments: Sequence[str], output: Path, patience: float) -> _EndedPython:
    """Run ``python ARGUMENTS`` for at most ``patience`` seconds; what it prints goes to ``output``.

    Its variables and its current folder are this process's, as when a job is started.
    """
    with output.open("wb") as file:  # a grandchild that hangs would hold a pipe
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            description = f"did not finish within {patience:g} seconds and was stopped"
            return _EndedPython(None, description, last_line(output))

    printed_last = last_line(output)
    description = f"ended: {describe_end(done.returncode, printed_last)}"
    return _EndedPython(done.returncode, description, printed_last, _place_of_error(output))


def _place_of_error(output: Path) -> str:
    """The last place outside of libraries in the tracebacks of an output, such as " (FILE:7)"."""
    frames = _FRAME.findall(output.read_text(encoding="utf-8", errors="replace"))
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    places = [
        f" ({path}:{line})"
        for path, line in frames
        if path.startswith(PACKAGE) or not path.startswith(libraries)
    ]
    return places[-1] if places else ""


def main(path: str, *names: str) -> None:
    """Make the checks of these names, by default all, and write their findings into a file.

    They come in an order in which a later one may need what an earlier one imported.
    """
    earlier_findings: list[Finding] = []
    with open(path, "w", encoding="utf-8") as file:
        for name in names or CHECKS:
            findings = _findings_of(name, has_problem(earlier_findings))
            print(json.dumps([vars(finding) for finding in findings]), file=file, flush=True)
            earlier_findings += findings


def _findings_of(name: str, has_earlier_problem: bool) -> list[Finding]:
    """The findings of a check, one of its failure if it raises, and one for each warning of ours.

    ``has_earlier_problem``: from which this failure may follow.
    """
    findings: list[Finding] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            findings.extend(CHECKS[name]())
        except (Exception, SystemExit) as error:  # some modules exit when they are imported
            traceback.print_exc()  # for who runs this by hand
            if name == "cache":
                remedy = CHOOSE_CACHE
            else:
                general_remedy = FIX_ABOVE if has_earlier_problem else RUN_BY_HAND
                remedy = installation_command(error) or general_remedy
            state = NOTE if has_earlier_problem else PROBLEM
            findings.append(Finding(name, state, error_message(error), remedy))

    for warning in caught:
        if issubclass(warning.category, CarftWarning):
            findings.append(Finding("plugin", NOTE, str(warning.message), FIX_EXTENSION))
    return findings


def check_versions() -> Iterator[Finding]:
    """Which interpreter, what is installed, what is too old to be safe, what is optional."""
    versions = {name: _installed_version(name) for name in (*MODULES, *OPTIONAL)}
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    python = f"Python {platform.python_version()}, {sys.executable}"
    yield Finding("versions", OK, f"{python}; domainbed-carft {__version__}, {listed}")

    torch_version = re.match(r"(\d+)\.(\d+)", versions["torch"])
    if torch_version and (int(torch_version[1]), int(torch_version[2])) < SAFE_TORCH:
        detail = "before torch 2.10 a malicious weights file may corrupt memory (CVE-2026-24747)"
        remedy = "open only files that you trust, or pip install 'torch>=2.10'"
        yield Finding("torch", NOTE, detail, remedy)


def check_hook() -> Iterator[Finding]:
    """Whether this interpreter was hooked when it started; nothing here could have done so."""
    if any(isinstance(hook, Finder) for hook in sys.meta_path):
        yield Finding("hook", OK, "active in a fresh interpreter")
    elif switched_off():
        detail = f"not active: {SWITCH} is {process_variables.DISABLE.read()!r}"
        yield Finding("hook", PROBLEM, detail, f"unset {SWITCH}")
    else:
        folders = ", ".join(site.getsitepackages())
        detail = f"not active: domainbed_carft.pth is missing or damaged in {folders}"
        install = shlex.join([sys.executable, "-m", "pip", "install", os.path.dirname(PACKAGE)])
        remedy = f"{install}; or call domainbed_carft.register() in your own training script"
        yield Finding("hook", PROBLEM, detail, remedy)


def check_cache() -> Iterator[Finding]:
    """Where it is, and whether it can be written, by writing."""
    folder = files.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    yield Finding("cache", OK, f"{folder}, writable, {free / 1e9:.1f} GB free")


def check_imports() -> Iterator[Finding]:
    """Whether our dependencies can be imported, not only found, and how long that takes."""
    has_failed = False
    started = time.monotonic()
    for distribution, module in MODULES.items():
        error = import_error(module)
        if error:
            has_failed = True
            detail = f"import of {module} fails: {error_message(error)}"
            remedy = installation_command(error) or f"pip install --force-reinstall {distribution}"
            yield Finding(f"imports {distribution}", PROBLEM, detail, remedy)

    seconds = time.monotonic() - started
    detail = f"{', '.join(MODULES)}, in {seconds:.1f} seconds"
    if seconds > SLOW_IMPORTS:
        yield Finding("imports", NOTE, f"slow: {detail}", MOVE_ENVIRONMENT)
    elif not has_failed:
        yield Finding("imports", OK, detail)


def check_domainbed() -> Iterator[Finding]:
    """Which domainbed is found, whose it is, and the first of its modules that fails."""
    from domainbed_carft.method.host_lookup import in_our_harness

    failed_module, error = _first_failing_host_module()
    spec = find_spec("domainbed")
    if spec is None:
        remedy = "activate the hook, which provides a harness, or start in your checkout's root"
        yield Finding("domainbed", PROBLEM, f"none found from {os.getcwd()}", remedy)
        return

    locations = [*(spec.submodule_search_locations or ()), str(spec.origin)]
    path = os.path.abspath(locations[0])
    is_harness = False
    with contextlib.suppress(Exception):  # it may fail as a whole
        is_harness = in_our_harness()
    found = f"foreign: {path}"
    if is_harness:
        found = f"ours, the harness: {path}; for a checkout run carft doctor in its root"
    yield Finding("domainbed", OK, found)

    # An import fails of the first that is missing.
    missing = [] if is_harness else missing_libraries(Path(path))
    if missing:
        detail = f"this checkout's training imports {', '.join(missing)}, not installed"
        yield Finding("libraries", PROBLEM, detail, pip_command(missing))
    elif error:
        detail = f"import of {failed_module} fails: {error_message(error)}"
        remedy = installation_command(error)
        remedy = remedy or f"python -c 'import {failed_module}' shows where it fails"
        yield Finding(failed_module, PROBLEM, detail, remedy)
    if not is_harness:
        yield _finding_of_script(Path(path))


def _finding_of_script(package: Path) -> Finding:
    """That a checkout's training is not tried here, and how to try it."""
    scripts = _training_scripts(package)
    if TRAIN_SCRIPT in scripts:
        return Finding("train", SKIPPED, "not tried: this checkout has its own train", TRAIN_A_STEP)

    detail = "not tried: this checkout has no domainbed.scripts.train"
    examples = f", such as {', '.join(scripts)}" if scripts else ""
    return Finding("train", SKIPPED, detail, f"take a step by its own entry point{examples}")


def check_algorithms() -> Iterator[Finding]:
    """Whether the names of our algorithms stand for our classes, and the user's own methods."""
    from domainbed_carft.jobs.algorithms import ALGORITHMS
    from domainbed_carft.method.algorithms import OWN
    from domainbed_carft.plugin.additions import HOST_NAMES

    host = importlib.import_module("domainbed.algorithms")
    for problem in HOST_NAMES.problems:
        yield Finding("own methods", PROBLEM, problem)
    if HOST_NAMES.problems:
        return
    not_ours = list(ALGORITHMS)
    for name in ALGORITHMS:
        with contextlib.suppress(Exception):  # upstream raises NotImplementedError, forks KeyError
            bases = host.get_algorithm_class(name).__mro__
            if any(base.__module__.startswith("domainbed_carft.") for base in bases):
                not_ours.remove(name)

    if not_ours:
        listed = ", ".join(not_ours)
        # A job of CARFT would train something else, and nobody would know.
        state = PROBLEM if "CARFT" in not_ours else NOTE
        detail = f"{listed}: missing, or domainbed's own instead of ours"
        yield Finding("algorithms", state, detail, f"rename its {listed}, or {FIX_EXTENSION}")
    else:
        yield Finding("algorithms", OK, ", ".join(ALGORITHMS))
    if OWN:
        yield Finding("own methods", OK, ", ".join(OWN))


def check_device() -> Iterator[Finding]:
    """GPUs with their memory and compute capability, and the driver; or the processor."""
    import torch

    from domainbed_carft.machine import devices

    gpus = [devices.gpu_facts(index) for index in range(devices.gpu_count())]
    if gpus:
        cards = [
            f"{gpu.name}, {gpu.memory / 1e9:.0f} GB, compute capability "
            f"{'.'.join(map(str, gpu.capability))}"
            for gpu in gpus
        ]
        detail = "; ".join(filter(None, [*cards, devices.gpu_runtime()]))
    else:
        detail = f"CPU, {machine.cores()} cores, {torch.get_num_threads()} threads"
    yield Finding("device", OK, detail)


def check_backbones() -> Iterator[Finding]:
    """OpenAI's weights that are here, and the default ones if they are missing.

    Others are not missed: few jobs ask for them. `check_step` loads tiny.
    """
    from domainbed_carft.clips import openai
    from domainbed_carft.method.hparams import SMALL_DATASETS

    for name in openai.PUBLISHED[1:]:
        path, checksum = openai.published(name)
        if path.exists():
            yield _finding_of_weights(name, path, checksum)
        elif name == DEFAULT_BACKBONE:
            yield Finding(
                f"backbone {name}",
                NOTE,
                f"no {path}; by default all data sets but {', '.join(SMALL_DATASETS)} need it "
                f"({DEFAULT_BACKBONE_SIZE})",
                "the first job that needs it downloads it; without a network copy it there",
            )


def _finding_of_weights(name: str, path: Path, checksum: str) -> Finding:
    from domainbed_carft.files import weights

    if weights.sha256(path) == checksum:
        return Finding(f"backbone {name}", OK, f"{path}, SHA-256 as published")

    state = PROBLEM if name == DEFAULT_BACKBONE else NOTE
    detail = f"{path} is damaged, expected SHA-256 {checksum}"
    remedy = f"rm {shlex.quote(str(path))}, which the next job that needs it downloads"
    return Finding(f"backbone {name}", state, detail, remedy)


def check_step() -> Iterator[Finding]:
    """One CARFT step of the tiny CLIP on noise, through the host's own lookups."""
    import torch

    from domainbed_carft.machine import devices

    algorithms = importlib.import_module("domainbed.algorithms")
    registry = importlib.import_module("domainbed.hparams_registry")
    device = devices.default_device()
    hparams = registry.default_hparams("CARFT", "EmojiStyles")
    carft = algorithms.get_algorithm_class("CARFT")
    algorithm = carft(INPUT_SHAPE, CLASS_COUNT, DOMAIN_COUNT, hparams).to(device)

    minibatches = []
    for _ in range(DOMAIN_COUNT):
        pictures = torch.rand(2, *INPUT_SHAPE)
        labels = torch.randint(CLASS_COUNT, (2,))
        minibatches.append((pictures.to(device), labels.to(device)))
    loss = float(algorithm.update(minibatches)["loss"])

    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    yield Finding("step", OK, f"one CARFT step on {device}: loss {loss:.3f}")


# By the name that a finding has if the check fails.
CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": check_versions,
    "hook": check_hook,
    "cache": check_cache,
    "imports": check_imports,
    "domainbed": check_domainbed,
    "algorithms": check_algorithms,
    "device": check_device,
    "backbones": check_backbones,
    "step": check_step,
}


def _installed_version(distribution: str) -> str:
    """The version of ``distribution``, "" if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _first_failing_host_module() -> tuple[str, BaseException | None]:
    """The others most likely fail for the same reason."""
    for module in HOST_MODULES:
        error = import_error(module)
        if error:
            return module, error
    return "", None


def _training_scripts(package: Path) -> list[str]:
    """The files by which the checkout of the package ``domainbed`` trains, below its root."""
    root = package.parent
    paths = [*root.glob("train*.py"), *package.glob("scripts/*train*.py")]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def missing_libraries(package: Path) -> list[str]:
    """The libraries that training jobs of the package ``domainbed`` import and that are missing.

    Imports inside functions, conditions and ``try`` do not count: a job may do without them.
    """
    waiting = list(STARTING_POINTS)
    read = set()
    missing = set()
    while waiting:
        module = waiting.pop()
        path = _file_of(package, module)
        if path is None or path in read:
            continue

        read.add(path)
        for imported in _imported_modules(path, package):
            library, _, rest = imported.partition(".")
            if library == package.name:
                waiting.append(rest)
            elif find_spec(library) is None:
                missing.add(library)
    return sorted(missing)


def _file_of(package: Path, module: str) -> Path | None:
    """The file of a module below ``package``, "" for the package itself; None if it has none."""
    path = package.joinpath(*module.split(".")) if module else package
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _imported_modules(path: Path, package: Path) -> Iterator[str]:
    """The modules that a file imports at its top, with every name that may be one.

    Nothing for a file that is not Python of this interpreter.
    """
    statements: list[ast.stmt] = []
    with contextlib.suppress(SyntaxError, ValueError):
        statements = ast.parse(path.read_bytes()).body

    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            module = statement.module or ""
            if statement.level:
                folder = path.parents[statement.level - 1].relative_to(package.parent)
                module = ".".join(filter(None, [*folder.parts, module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in statement.names)


def import_error(module: str) -> BaseException | None:
    """What the import of ``module`` raises, None if it works."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return error
    return None


def error_message(error: BaseException) -> str:
    """In one line, with the error's type unless the message of an ImportError says it all."""
    message = " ".join(str(error).split())
    if isinstance(error, ImportError) and message:
        return message
    return f"{type(error).__name__}: {message}"


def installation_command(error: BaseException) -> str:
    """How to install the module that ``error`` says is missing; "" if that is not its cause."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""

    top_module = error.name.partition(".")[0]
    return "" if top_module == "domainbed" else pip_command([top_module])


def pip_command(modules: Sequence[str]) -> str:
    """How to install these ``modules``."""
    return " ".join(["pip install", *(DISTRIBUTIONS.get(name, name) for name in modules)])


def train_two_steps(patience: float) -> list[Finding]:
    """Whether `train` does two steps within ``patience`` seconds, and writes what tables need.

    No findings if the domainbed in use has no `domainbed.scripts.train`.
    """
    by_hand = f"to see more, run {shlex.join(train_command({**STEP_JOB, 'output_dir': 'OUT'}))}"
    with tempfile.TemporaryDirectory(prefix="carft-doctor-") as temporary:
        job_folder = Path(temporary) / "job"
        command = train_command({**STEP_JOB, "output_dir": str(job_folder)})
        ended = _run_python(command[1:], Path(temporary) / "output", patience)

        if re.search(r"No module named '?domainbed\.scripts", ended.last_line):  # as in SWAD
            return []
        if "error: unrecognized arguments" in ended.last_line:  # as in DomainBed-v2
            remedy = "take a step with the arguments that this checkout's train has"
            return [Finding("train", SKIPPED, f"not tried: {ended.last_line}", remedy)]
        if ended.exit_status != 0:
            found = f"{ended.description}{ended.place}"
            return [Finding("train", PROBLEM, found, by_hand)]
        problem = _problem_of_folder(job_folder)

    findings = [Finding("train", OK, "two steps of CARFT on EmojiStyles by its own command")]
    if problem:
        findings.append(Finding(RESULTS, PROBLEM, problem, by_hand))
    return findings


def _problem_of_folder(job_folder: Path) -> str:
    """What the folder of the job lacks; "" if it has everything."""
    if not (job_folder / DONE).exists():
        return f"ended with status 0 but wrote no file {DONE!r}, so no job counts as done"

    record = records.last_record(job_folder) or {}
    if not any(ACCURACY.fullmatch(name) for name in record):
        return "its records have no accuracies (env0_in_acc, ...), so no table can be made"
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
