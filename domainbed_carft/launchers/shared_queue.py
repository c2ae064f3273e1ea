"""A queue of jobs that the slots of one machine share: what `local` and `pool` do."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from domainbed_carft.job_folder import MAX_ATTEMPTS
from domainbed_carft.launchers import job
from domainbed_carft.launchers.job import Children, Ending, Result
from domainbed_carft.launchers.protocol import FailedJob
from domainbed_carft.launchers.record import in_hand
from domainbed_carft.launchers.signals import stopping


@dataclass
class SharedQueue:
    """The jobs of one call of a launcher called `name`."""

    name: str
    commands: Sequence[str]
    verbose: bool = False
    failed: list[FailedJob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting = deque(self.commands)
        self._children = Children()
        self._interruptions: Counter[str] = Counter()
        self._held: list[Ending] = []
        self._ended = 0

    def run(self, slots: Sequence[Mapping[str, str]]) -> list[FailedJob]:
        """Run all jobs, one at a time in each slot, with the slot's variables.

        Returns the jobs that did not succeed.
        """
        if not self.commands:
            return []
        folders = [job.Command(command).folder for command in self.commands]
        with (
            stopping(self._children, self.name),
            in_hand(self.name, [folder for folder in folders if folder]),
            ThreadPoolExecutor(max_workers=len(slots)) as workers,
        ):
            futures = [workers.submit(self._work, slot) for slot in slots]
            wait(futures)
            for future in futures:
                future.result()
        self._tell()
        return self.failed

    def _work(self, environment: Mapping[str, str]) -> None:
        while self._children.stopped_by is None:
            try:
                command = self._waiting.popleft()
            except IndexError:
                return
            if self._is_settled(job.run(command, environment, self._children)):
                self._ended += 1
                if self.verbose:
                    self._progress()
            elif self._children.stopped_by is None:
                self._waiting.append(command)

    def _is_settled(self, ending: Ending) -> bool:
        """Whether this launch is through with a job; if not, it is to be started again."""
        if ending.result is Result.INTERRUPTED:
            # By someone who wants it to start again, but a job may also go on like that for ever.
            self._interruptions[ending.command] += 1
            settled = self._interruptions[ending.command] >= MAX_ATTEMPTS
            if settled and ending.failure:
                self.failed.append(ending.failure)
            return settled
        if ending.result is Result.HELD:
            self._held.append(ending)
        if ending.result is Result.LEFT and ending.failure:
            self.failed.append(ending.failure)
        return ending.result is not Result.FAILED

    def _progress(self) -> None:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        print(
            f"{self.name}: {self._ended} of {len(self.commands)} jobs ended{failed}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def _tell(self) -> None:
        if self._held:
            print(
                f"{self.name}: {len(self._held)} jobs were left to the processes that run them, "
                f"such as: {self._held[0].held}",
                file=sys.stderr,
            )
        for failure in self.failed:
            print(f"{self.name}: {failure}", file=sys.stderr)
