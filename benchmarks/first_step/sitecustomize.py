"""For start_up.py, on PYTHONPATH: a job says when its first training step is done.

It appends a line to the file in $FIRST_STEP: the time, and the processor time of its process.
"""

import os
import sys
import time

_WORDS = ("domainbed.scripts.train", "domainbed_carft.jobs.fork_server")

if "FIRST_STEP" in os.environ and any(word in sys.orig_argv for word in _WORDS):
    from torch.optim.optimizer import register_optimizer_step_post_hook

    _told = []

    def _tell(*_):
        if not _told:
            _told.append(1)
            with open(os.environ["FIRST_STEP"], "a") as file:
                file.write(f"{time.time()} {time.process_time()}\n")

    register_optimizer_step_post_hook(_tell)
