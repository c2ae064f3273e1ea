"""A run's scalars as a run of Weights & Biases, online or offline.

All processes of one run are one W&B run: its id is kept in `JOB/wandb/domainbed-run-id`. Online it
is gone on with, and steps that the server has are not sent again. Offline the new process's folder
`JOB/wandb/offline-run-...` holds the run from its first record on and replaces the one before, so
that one `wandb sync` sends the whole run. It appends to what the server has of that id; so
where that may be something, the whole run gets another id.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from domainbed.lib import optional_library

# W&B's own variable for what the runs of a sweep have in common.
GROUP = "WANDB_RUN_GROUP"
PROJECT = "domainbed"

_ID = "domainbed-run-id"
_LOCAL = ("offline", "dryrun", "disabled")
_ADVICE = "WANDB_MODE=offline logs into the job's folder, to be sent later by `wandb sync`"

# By itself W&B waits for its server at the end of a run for as long as it takes, and so would the
# job. What has not been sent by then is on disk.
_PATIENCE_S = 20


def problems() -> list[str]:
    """Say if the library is missing, or if nobody is logged in where a login is needed."""
    found = optional_library.problems("wandb", "--log wandb")
    return found or _login_problems()


def _login_problems() -> list[str]:
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(_PATIENCE_S))  # read when it is set up
    import wandb

    try:
        if wandb.setup().settings.mode in _LOCAL:
            return []
        with _nobody_to_ask():
            if wandb.login(verify=False):
                return []
        reason = "no API key configured"
    except Exception as error:
        if wrong := _wrong_mode(error):
            return [f"--log wandb: {wrong}. {_ADVICE}."]
        reason = " ".join(str(error).split()).rstrip(".")
    return [f"--log wandb: {reason}. Run `wandb login` first, or set WANDB_API_KEY. {_ADVICE}."]


def _wrong_mode(error: Exception) -> str:
    """What is wrong with WANDB_MODE, of pydantic's error, which names neither it nor a remedy."""
    told = getattr(error, "errors", list)()
    why = [one["msg"] for one in told if isinstance(one, dict) and one.get("loc") == ("mode",)]
    mode = os.environ.get("WANDB_MODE")
    return f"WANDB_MODE is {mode!r}. {why[0]}" if why and mode is not None else ""


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Inside the block nothing is read from a terminal: a job must fail, not wait for an answer."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def forget(folder: str) -> None:
    """Remove the run of this job's folder, but for what the server has of it."""
    path = os.path.join(folder, "wandb", _ID)
    if os.path.exists(path):
        _remove(folder, _read(path))
        os.unlink(path)


def _remove(folder: str, run_id: str, but: str = "") -> None:
    """Remove W&B's folders of a run; a project's others, which may lie beside, are left alone."""
    for path in _folders(folder, run_id):
        if not _same(path, but):
            shutil.rmtree(path, ignore_errors=True)


def _folders(folder: str, run_id: str) -> list[str]:
    """W&B's folders of a run; one begun in the same second as another has a number at its end."""
    begun = os.path.join(glob.escape(folder), "wandb", f"*run-*-{run_id}")
    return glob.glob(begun) + glob.glob(f"{begun}-*")


def _sent(folder: str, run_id: str) -> bool:
    """Whether the server may have something of a run: it was synced, or logged online."""
    return any(
        not os.path.basename(path).startswith("offline-")
        or glob.glob(os.path.join(glob.escape(path), "*.synced"))
        for path in _folders(folder, run_id)
    )


def _same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


class WeightsAndBiases:
    """A run of W&B. Arguments are those of `scalar_logs.KINDS`."""

    title = "Weights & Biases"

    def __init__(
        self, folder: str, name: str, args: Mapping[str, Any], hparams: Mapping[str, Any]
    ) -> None:
        self._folder = os.path.abspath(folder)
        self._name = name
        self._config = {"args": dict(args), "hparams": dict(hparams)}
        self._run: Any = None
        self._id = ""

    def open(self) -> str:
        """Begin a run, or go on with the one of earlier processes."""
        import wandb

        os.makedirs(os.path.join(self._folder, "wandb"), exist_ok=True)
        settings = wandb.setup().settings
        local = settings.mode in _LOCAL
        self._id = self._id or self._kept_id(local)
        with _nobody_to_ask():
            self._run = wandb.init(
                project=settings.project or PROJECT,
                id=self._id,
                name=self._name,
                dir=self._folder,
                config=self._config,
                resume="allow",
                settings=wandb.Settings(console="off", quiet=True),
            )
        self._first_step = self._run.starting_step
        return str(os.path.dirname(self._run.dir) if local else self._run.url)

    def _kept_id(self, local: bool) -> str:
        """The id of this run; a run in the folder of one that is done is another."""
        path = os.path.join(self._folder, "wandb", _ID)
        if os.path.exists(path) and not os.path.exists(os.path.join(self._folder, "done")):
            earlier = _read(path)
            if not (local and _sent(self._folder, earlier)):
                return earlier
            print(
                f"Warning: part of this run was sent to Weights & Biases as {earlier}. The whole "
                "run gets another id; that one may be deleted there."
            )
        run_id = secrets.token_hex(4)
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.write(run_id)
        os.replace(f"{path}.part", path)
        return run_id

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log a record's scalars, unless the server has that step."""
        if step >= self._first_step:
            self._run.log(dict(scalars), step=step, commit=True)

    def replaces_earlier(self) -> None:
        """Remove the folders of earlier processes."""
        own = os.path.dirname(self._run.dir)
        if _same(os.path.dirname(own), os.path.join(self._folder, "wandb")):  # not where disabled
            _remove(self._folder, self._id, but=own)

    def close(self, done: bool) -> None:
        """End W&B's run; it is gone on with if this one is."""
        try:
            self._run.finish(exit_code=0 if done else 1)
        except Exception:
            import wandb

            # Its process may be gone; else W&B would look for it again at the end of this one.
            with contextlib.suppress(Exception):
                wandb.teardown()
            raise
