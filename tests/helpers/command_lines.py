"""Command lines for a shell."""

import shlex


def python(code, *arguments):
    """Return a command line that runs Python code, quoted for a shell."""
    return " ".join(["python", "-c", shlex.quote(code), *map(shlex.quote, arguments)])
