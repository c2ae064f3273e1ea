"""Ways to run command lines. `python` is whatever the user's shell has under that name."""

import subprocess


def local_launcher(commands):
    for command in commands:
        subprocess.call(command, shell=True)


REGISTRY = {"local": local_launcher}
