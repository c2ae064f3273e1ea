"""What README and docs/ tell users to type: the tutorial as a whole, then every other command.

The commands run in the tutorial's folder, where OUT is its sweep, JOB and JOB2 two of its jobs.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import doc_blocks
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TUTORIAL = ROOT / "docs" / "tutorial.md"
OWN_METHOD = ROOT / "docs" / "howto" / "own-method.md"
LONGEST = 900  # seconds for one block, on a busy machine
pytestmark = pytest.mark.slow

# Commands that no test here runs -> why. The first that matches holds.
NOT_RUN = {
    r"\bpip (install|wheel)\b": "asks a package index",
    r"^(source|make|wandb|git|tensorboard|watch|cd|export PIP|python3? -m venv)\b": "changes the "
    "environment, or serves",
    r"^(docker|apptainer|srun)\b": "needs a container runtime; tests/test_containers.py",
    r"preflight demo": "tests/test_preflight.py",
    r"--launcher slurm|scontrol": "needs a cluster; tests/test_slurm.py",
    r"torchrun|--gpus|--jobs_per_gpu|--processes": "needs GPUs; tests/harness/test_processes.py",
    r"--dataset EmojiStyles --test_envs 0 --output_dir JOB": "tests/test_step.py trains them all",
    r"--by\b": "needs a sweep with a grid; tests/test_collect_by.py",
    r"--which last": "the command of the line above has written the file",
    r"wandb": "needs an account; tests of logs run it offline",
    r"--data_dir (DATA|\.)|DATA/imagenetv2": "needs a benchmark's pictures or OpenAI's weights",
    r"--dataset path/to/root|--suite imagenet|clip\.load\(": "needs OpenAI's weights",
    r"open_clip:|open_clip\.create_model": "needs a checkpoint from the hub; "
    "tests/test_open_clip.py",
    r"benchmarks/|tools/pretrain": "takes minutes to hours; benchmarks/ are run by hand",
    r"contamination|(peers|fresh|settle|amp)-emoji": "takes hours",
    r"^carft demo|sweep launch demo|EmojiShift": "tests/test_demo.py, tests/test_suites_runs.py",
    r"EmojiUnseen": "predicts 13 test sets; tests/test_emoji_unseen.py",
    r"carft report OUT (MORE|-o)": "the tutorial writes a report; tests/test_report_command.py",
    r"^carft doctor": "tests/test_doctor.py",
    r"carft diff OUT": "tests/test_diff.py",
    r"weights\.pkl|CARFT_IMAGENET": "the file is the reader's",
}


# Runs a command and presses Ctrl-C once two jobs are training, however long that takes on this
# machine. Jobs of CLIPZeroShot do not count: they end too soon.
PRESS_CTRL_C = """
import pathlib, signal, subprocess, sys, time

def trains(records):
    is_done = (records.parent / "done").exists()
    return not is_done and "CLIPZeroShot" not in records.read_text()

process = subprocess.Popen(sys.argv[1:])
while process.poll() is None and sum(map(trains, pathlib.Path().glob("*/*/results.jsonl"))) < 2:
    time.sleep(0.1)
process.send_signal(signal.SIGINT)
sys.exit(process.wait())
"""


def with_ctrl_c_in_time(command):
    """The command with `PRESS_CTRL_C` in place of `timeout`."""
    press = f"{sys.executable} -c {shlex.quote(PRESS_CTRL_C)} "
    return re.sub(r"timeout --signal INT \d+ ", lambda _: press, command)


def run_block(block, folder, **variables):
    """What a block printed; a file that its title names is written. Fails where a command fails."""
    if block.title:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if path.suffix == ".py" else "w", encoding="utf-8") as file:
            file.write(block.text)
        return ""

    program = ["bash", "-e", "-o", "pipefail"] if block.language == "bash" else [sys.executable]
    folder_of_programs = str(Path(sys.executable).parent)
    path = f"{folder_of_programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*program, "-c", with_ctrl_c_in_time(block.text)],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "100", **variables},
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert done.returncode == 0, f"line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the tutorial was followed, and what each of its blocks printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    printed = []
    for block in doc_blocks.blocks(TUTORIAL):
        if block.language == "text":
            printed[-1] = (*printed[-1][:2], block)
        else:
            printed.append((block, run_block(block, folder), None))
    return folder, printed


def test_the_tutorial_prints_what_it_shows(tutorial):
    _, printed = tutorial
    compared = [(block, output, expected) for block, output, expected in printed if expected]

    assert len(compared) > 9
    for block, output, expected in compared:
        assert doc_blocks.is_shown(output, expected.text), f"line {block.line}:\n{output}"


def test_your_own_method_trains_as_the_page_says(tmp_path):
    """One file of the user's, and nothing of the package changes."""
    printed = ""
    variables = {}
    for block in doc_blocks.blocks(OWN_METHOD):
        if block.language == "text":
            assert doc_blocks.is_shown(printed, f"{block.text}...")
        elif block.title or block.language == "bash":
            quick = block._replace(text=shortened(block.text))
            printed = run_block(quick, tmp_path, **variables)
            variables |= dict(re.findall(r"^export (\w+)=(.*)$", block.text, re.MULTILINE))

    records = (tmp_path / "ANCHOR" / "results.jsonl").read_text(encoding="utf-8")
    assert '"loss_anchor"' in records and '"method_digest"' in records


def shortened(command):
    """The command with two steps, where it trains."""
    return re.sub(
        r"(-m domainbed\.scripts\.train (?:.*\\\n)*.*)",
        r"\1 --steps 2",
        command,
        flags=re.MULTILINE,
    )


def reason_not_to_run(command):
    """Why a command is not run; "" if it is."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), "")


def commands(block):
    """The commands of a block of shell, each with the lines that continue it."""
    if "\ndone" in block.text or "'\n" in block.text:
        return [block.text]
    joined = re.sub(r"\s*\\\n\s*", " ", block.text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def runnable_blocks(page):
    """The blocks of a page that are run: files, commands of shell without a reason, Python."""
    for block in doc_blocks.blocks(page):
        if block.language == "bash":
            lines = [line for line in commands(block) if not reason_not_to_run(line)]
            if lines:
                yield block._replace(text=shortened("\n".join(lines)))
        elif block.title:
            yield block
    python = [b for b in doc_blocks.blocks(page) if b.language == "python" and not b.title]
    if python and page.name not in PYTHON_NOT_RUN:
        yield python[0]._replace(text="\n".join(block.text for block in python))


# Pages whose Python is not run -> why.
PYTHON_NOT_RUN = {
    "README.md": "tests/test_readme.py",
    "export.md": "its model is ViT-B/16's; tests/test_runs_export.py",
    "sweeps.md": "it launches the demo; tests/test_sweep_launch.py",
}
MADE_FROM_CODE = "<!-- made by"  # whose examples tests/test_help.py has
RUN_PAGES = [
    page
    for page in PAGES
    if page not in (TUTORIAL, OWN_METHOD)
    and not page.read_text(encoding="utf-8").startswith(MADE_FROM_CODE)
    and [*runnable_blocks(page)]
]


@pytest.fixture(scope="module")
def examples(tutorial):
    """What the pages name -> what the tutorial has made: a sweep, its runs, pictures."""
    folder = tutorial[0]
    sweep = folder / "runs"
    runs = {}
    for path in sorted(sweep.glob("*/results.jsonl")):
        text = path.read_text(encoding="utf-8")
        if '"test_envs": [0]' in text and '"trial_seed": 0' in text:
            runs[re.search(r'"algorithm": "(\w+)"', text)[1]] = path.parent
    (sweep / "JOB").symlink_to(runs["CARFT"])
    (sweep / "JOB2").symlink_to(runs["CLIPFineTune"])

    pictures = folder / "drawings" / "line" / "food"
    picture = next(pictures.glob("*.png"))
    return {
        **dict.fromkeys(("OUT", "OTHER", "MORE"), sweep),
        **dict.fromkeys(("JOB", "RUN"), runs["CARFT"]),
        "RUN2": runs["CLIPFineTune"],
        "RUN3": runs["CLIPZeroShot"],
        **dict.fromkeys(("drawings", "DATA"), folder / "drawings"),
        **dict.fromkeys(("PICTURES", "FOLDER"), pictures),
        **dict.fromkeys(("PICTURE", "cat.png", "dog.png", "picture.png"), picture),
    }


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, examples, tmp_path):
    blocks = [*runnable_blocks(page)]
    written = re.findall(r"--output_dir (\S+)", "".join(block.text for block in blocks))
    for name, path in examples.items():
        if name not in written:
            (tmp_path / name).symlink_to(path)

    for block in blocks:
        run_block(block, tmp_path)


def test_each_reason_holds_for_a_command():
    documented = [
        command
        for page in PAGES
        for block in doc_blocks.blocks(page)
        if block.language == "bash"
        for command in commands(block)
    ]
    used = {reason_not_to_run(command) for command in documented}

    assert used - {""} == {*NOT_RUN.values()}


def test_the_reference_lists_each_file_of_a_job_and_each_key_of_a_record(tutorial):
    page = (ROOT / "docs" / "reference" / "files-and-records.md").read_text(encoding="utf-8")
    listed = {*re.findall(r"`([^`]+)`", page)}

    for records in (tutorial[0] / "runs").glob("*/results.jsonl"):
        files = {re.sub(r"_step\d+", "_stepN", path.name) for path in records.parent.iterdir()}
        assert files <= listed
        for line in records.read_text(encoding="utf-8").splitlines():
            keys = {re.sub(r"^env\d+", "envN", key) for key in json.loads(line)}
            assert keys <= listed
