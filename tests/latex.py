"""LaTeX, if it is installed: compiles what the package writes."""

import shutil
import subprocess
from pathlib import Path

import pytest

LATEX = shutil.which("pdflatex") or shutil.which("tectonic")
needs_latex = pytest.mark.skipif(
    LATEX is None, reason="needs pdflatex (Debian: texlive-latex-base) or tectonic"
)


def compile_document(path: Path) -> str:
    """Compile a document beside it; returns what LaTeX printed. Fails if there is no PDF."""
    assert LATEX
    options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in LATEX else []
    process = subprocess.run(
        [LATEX, *options, path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert process.returncode == 0, process.stdout[-3000:]
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    return process.stdout
