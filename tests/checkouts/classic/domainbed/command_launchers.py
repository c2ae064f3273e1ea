"""Launchers of command lines, in which `python` is the program of the user's shell."""

import subprocess


def local_launcher(commands):
    for command in commands:
        subprocess.call(command, shell=True)


REGISTRY = {"local": local_launcher}
