"""Whether a training job could start here, and how to fix what keeps it from starting.

`diagnosis.diagnose` answers it, by `checks` in a fresh interpreter (`__main__`) and, if you want, a
step of training (`training_step`). This module imports nothing: torch may be broken.
"""
