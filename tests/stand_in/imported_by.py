"""The process that has run the stand-in's imports."""

import os

PID = os.getpid()
