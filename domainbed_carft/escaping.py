"""Untrusted text made printable: control characters are escaped before a line is printed."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

# Control characters, line separators, direction marks, zero-width characters, and surrogates,
# which Python also uses for file names that are not UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff]"
)
# tqdm writes the first before each state of a bar, and the second to return to a bar further up.
_PROGRESS = re.compile("\r|(?:\x1b\\[A)+\\Z")


def printable(text: str) -> str:
    r"""Escape what is unsafe in one line with text from a file or folder: a newline becomes ``\n``.

    Whatever makes lines calls this function for them: `print_lines`, `table`, `log`, the message of
    a `CarftError`, and the writers of tables, figures and pages.
    """
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def escape_output(output: str) -> str:
    """Escape what is unsafe in one write to a stream, but not line breaks, tabs, progress bars."""
    bar = _PROGRESS.match(output)
    start = bar.end() if bar else 0
    return output[:start] + _UNSAFE.sub(
        lambda match: match[0] if match[0] in "\n\t" else _escape(match), output[start:]
    )


class EscapedStream:
    """A stream that passes text on with `escape_output`, also the text of other libraries."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, output: str) -> int:
        """Write text without control characters."""
        self._stream.write(escape_output(output))
        return len(output)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each text without control characters."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # avoids endless recursion in a copy, which has no _stream yet
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what the block prints on standard output and standard error, unless they are None."""
    with contextlib.ExitStack() as stack:
        for redirect, stream in (
            (contextlib.redirect_stdout, sys.stdout),
            (contextlib.redirect_stderr, sys.stderr),
        ):
            if stream is not None:
                stack.enter_context(redirect(cast("TextIO", EscapedStream(stream))))
        yield


def print_lines(*lines: str, stream: TextIO | None = None) -> None:
    """Print lines at once, each without control characters, on standard output by default."""
    text = "".join(f"{printable(line)}\n" for line in lines)
    print(text, end="", file=stream, flush=True)
