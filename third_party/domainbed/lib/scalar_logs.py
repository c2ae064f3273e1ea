"""Log the records' scalars to TensorBoard and Weights & Biases during training.

After an interruption each library completes the log in its way: TensorBoard drops the steps that
are rewritten, and W&B resumes the run that has not ended. Upstream has no equivalent.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed_carft.errors import TransientError, brief
from domainbed_carft.process_variables import LOG

KINDS = ("tensorboard", "wandb")

_COMPARED_BY = ("algorithm", "dataset", "test_envs", "trial_seed", "hparams_seed")


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--log`, which is neither recorded nor part of a job's identity."""
    parser.add_argument(
        "--log",
        nargs="*",
        choices=KINDS,
        default=LOG.read().split(),
        help="also log the records' scalars to TensorBoard, to Weights & Biases, or to both; "
        f"--log alone turns this off (to set it for all jobs: ${LOG.name})",
    )


def problems(kinds: Sequence[str]) -> list[str]:
    """Return problems for unknown kinds of logs, missing libraries and missing logins."""
    sentences = []
    for kind in dict.fromkeys(kinds):
        spec = importlib.util.find_spec(kind) if kind in KINDS else None
        if kind not in KINDS:
            sentences.append(f"{LOG.name} has {kind!r}, expected names from {', '.join(KINDS)}")
        elif spec is None or spec.origin is None:  # no origin: a folder of logs with this name
            sentences.append(f"--log {kind} needs {kind}: pip install {kind}")
        elif kind == "wandb":
            reason = _wandb_problem()
            if reason:
                sentences.append(
                    f"--log wandb: {reason}; run `wandb login`, or set WANDB_API_KEY or "
                    "WANDB_MODE=offline"
                )
    return sentences


def _wandb_problem() -> str:
    """Return the reason why W&B cannot log, or "" if it can."""
    # By default W&B waits for its server without limit. Unsent data remains on disk.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "20")
    import wandb

    try:
        is_online = wandb.setup().settings.mode == "online"
        if is_online and not wandb.login(verify=False):
            return "you are not logged in"
    except Exception as error:  # an invalid setting, or no terminal for the login
        reason = brief(error).rstrip(".")
        # The caller's hint covers the login.
        return "you are not logged in" if "wandb login" in reason else reason
    return ""


def set_job_variables(kinds: Sequence[str], sweep_output_dir: str) -> None:
    """Set variables so that all jobs of a sweep log, in W&B as a group with the folder's name."""
    os.environ[LOG.name] = " ".join(kinds)
    if "wandb" in kinds:
        name = os.path.basename(os.path.abspath(sweep_output_dir))
        os.environ.setdefault("WANDB_RUN_GROUP", name)


def run_name(args: Mapping[str, Any]) -> str:
    """Return a readable name that is valid for a file: CARFT_PACS_test0_trial1_hparams0."""
    environments = "+".join(map(str, args["test_envs"])) or "none"
    dataset = os.path.basename(str(args["dataset"]).rstrip("/"))
    seeds = f"trial{args['trial_seed']}_hparams{args['hparams_seed']}"
    return re.sub(r"[^\w+.-]", "-", f"{args['algorithm']}_{dataset}_test{environments}_{seeds}")


class Logs:
    """The logs of one job, closed at the end of a `with` block; later failures are warnings.

    Args:
        kinds: names among KINDS.
        args: the job's arguments.
        hparams: the job's hyperparameters.

    Raises:
        TransientError: a log cannot be opened.
    """

    def __init__(
        self, kinds: Sequence[str], args: Mapping[str, Any], hparams: Mapping[str, Any]
    ) -> None:
        self._open: dict[str, Any] = {}
        self._read = 0
        for kind in dict.fromkeys(kinds):
            try:
                self._open[kind] = _OPEN[kind](args, hparams)
            except Exception as error:
                raise TransientError(f"the {kind} log cannot be opened: {brief(error)}") from error

    def catch_up(self, records: str) -> None:
        """Log the new records.

        Args:
            records: all records of this job so far, as JSON lines.
        """
        new_records = [json.loads(line) for line in records[self._read :].splitlines()]
        self._read = len(records)
        for kind, log in list(self._open.items()):
            try:
                for record in new_records:
                    numbers = {k: v for k, v in record.items() if type(v) in (int, float)}
                    log.add(numbers.pop("step"), numbers)
            except Exception as error:
                del self._open[kind]
                print(f"Warning: the {kind} log ends here: {brief(error)}. Training continues.")

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        for kind, log in self._open.items():
            try:
                log.close(int(failed is not None))
            except Exception as error:
                print(f"Warning: the {kind} log is incomplete: {brief(error)}.")


class _TensorBoard:
    """A log in `JOB/tensorboard/NAME`, so that TensorBoard shows the name for any --logdir."""

    def __init__(self, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter, summary

        folder = os.path.join(args["output_dir"], "tensorboard", run_name(args))
        # All records of the job are logged again, and replace the ones of earlier processes.
        self._writer = SummaryWriter(folder, purge_step=0)
        values = {name: args[name] for name in _COMPARED_BY} | dict(hparams)
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values.items()}
        self._writer._get_file_writer().add_summary(summary.hparams(plain, {})[1])
        print(f"TensorBoard: tensorboard --logdir {args['output_dir']}")

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars of a step."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: int) -> None:
        """Close the log; `status` is 0 unless the job failed."""
        self._writer.close()


class _WeightsAndBiases:
    """A run of W&B, online or offline; its files are in `JOB/wandb`."""

    def __init__(self, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=wandb.setup().settings.project or "domainbed",
            name=run_name(args),
            dir=os.path.abspath(args["output_dir"]),
            config={"args": dict(args), "hparams": dict(hparams)},
            resume="auto",
            settings=wandb.Settings(console="off", quiet=True),
        )
        # Online, the server has the records of earlier processes. Offline, every process logs all
        # records: `wandb sync` replaces the data of a run that it sent before.
        self._first = self._run.starting_step
        print(f"Weights & Biases: {self._run.url or os.path.dirname(self._run.dir)}")

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars of a step."""
        if step >= self._first:
            self._run.log(dict(scalars), step=step, commit=True)

    def close(self, status: int) -> None:
        """Close the log; `status` is 0 unless the job failed."""
        self._run.finish(exit_code=status)


_OPEN = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
