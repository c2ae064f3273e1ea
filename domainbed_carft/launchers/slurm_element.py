"""What runs in a SLURM job: one of the sweep's jobs, until it is done, failed or interrupted."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import MAX_ATTEMPTS, Held, slurm_id
from domainbed_carft.launchers import attempt, slurm_commands
from domainbed_carft.launchers.attempt import Children, Ending, Result
from domainbed_carft.launchers.launches import FOLDER

# SLURM starts a job again while a process of its last run may still hold the lock.
_OTHERS_SECONDS = 30.0

# A turn is this and the two minutes that SLURM has a requeued job wait: some two hours in all.
_HELD_TURNS = 50


@dataclass(frozen=True)
class Element:
    """The function that submitit pickles, and calls in the job.

    Its two signals are handled here and not by submitit, which would ask for the requeue inside of
    the handler, before the attempt is noted and the lock let go.

    Args:
        command: of the sweep's job.
        environment: variables to set for it.
        patience: seconds a child has to save itself before it is killed.
    """

    command: str
    environment: Mapping[str, str]
    patience: float

    def __call__(self) -> None:
        """Make attempts until one is the last.

        Raises:
            CarftError: the job failed, so that SLURM shows it as failed.
            SystemExit: SLURM told the job to stop.
        """
        children = Children()

        def warned(number: int, frame: FrameType | None) -> None:
            """The time limit is near, or the job is preempted: save, then wait for another turn."""
            children.stop(number, signal.SIGUSR1)
            self._kill_later(children)

        def told_to_end(number: int, frame: FrameType | None) -> None:
            """SLURM ends the job; if for preemption, it will start it again without our asking."""
            children.stop(number)

        signal.signal(signal.SIGUSR2, warned)
        signal.signal(signal.SIGTERM, told_to_end)
        ending = self._attempts(children)
        if ending.result is Result.DONE:
            return
        if children.stopped_by == signal.SIGUSR2 and ending.result is not Result.LEFT:
            name = slurm_id()
            print(f"carft: requeue {name}", flush=True)
            slurm_commands.requeue(name or "")
        if children.stopped_by is not None:
            sys.exit(128 + children.stopped_by)
        if ending.held is not None:
            self._give_way(ending.held)
        raise CarftError(str(ending.failure))

    def _give_way(self, held: Held) -> NoReturn:
        """Leave the job to who has it, and look again in another turn; not for ever."""
        name = slurm_id() or ""
        notes = held.folder.parent / FOLDER / "slurm-logs"
        notes.mkdir(parents=True, exist_ok=True)
        with (notes / f"{name}.held").open("a", encoding="utf-8") as file:
            file.write(f"{held.holder}\n")
        turns = len((notes / f"{name}.held").read_text(encoding="utf-8").splitlines())
        if turns > _HELD_TURNS:
            raise CarftError(f"{held}. It was waited for {turns} times; launch the sweep again")
        print(f"carft: {held}; requeue {name}", flush=True)
        slurm_commands.requeue(name)
        sys.exit(75)  # try again: EX_TEMPFAIL

    def _attempts(self, children: Children) -> Ending:
        interruptions = 0
        while True:
            ending = attempt.run(self.command, self.environment, children, _OTHERS_SECONDS)
            interruptions += ending.result is Result.INTERRUPTED
            again = ending.result in (Result.FAILED, Result.INTERRUPTED)
            if children.stopped_by or not again or interruptions >= MAX_ATTEMPTS:
                return ending

    def _kill_later(self, children: Children) -> None:
        timer = threading.Timer(self.patience, children.kill)
        timer.daemon = True
        timer.start()
