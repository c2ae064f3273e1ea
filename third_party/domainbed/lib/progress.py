"""The progress of a job, published in its lock for `carft sweep status`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from domainbed_carft.jobs.job_folder import Lock

INTERVAL_SECONDS = 5.0


@dataclass
class ProgressPublisher:
    """Publishes the number of finished steps, at most every few seconds."""

    lock: Lock | None  # None publishes nothing
    n_steps: int
    images_per_step: int
    _published_at: float = 0.0

    def publish(self, steps_done: int, at_once: bool = False) -> None:
        """Publish the number of steps if INTERVAL_SECONDS have passed, or always if `at_once`."""
        now = time.time()
        if self.lock is None or not (at_once or now > self._published_at + INTERVAL_SECONDS):
            return

        self._published_at = now
        self.lock.publish(step=steps_done, steps=self.n_steps, images_per_step=self.images_per_step)
