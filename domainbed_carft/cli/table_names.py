"""Names for flags, as modules that take a while to load have them; a test compares them."""

from __future__ import annotations

FORMATS = ("text", "markdown", "csv", "json", "latex")
LATEX_TABLE = "latex-table"
ERRORS = ("domainbed", "sample", "std")
DEFAULT_COLUMNS = ("environments", "average")
COLUMNS_OF_RECORDS = (
    *DEFAULT_COLUMNS,
    "out-of-domain",
    "worst",
    "in-domain",
    "step-seconds",
    "training-hours",
    "evaluation-hours",
    "memory",
    "parameters",
    "jobs",
    "draws",
)
COLUMNS = (
    *COLUMNS_OF_RECORDS,
    "per-class",
    "worst-class",
    "ece",
    "ece-scaled",
    "nll",
    "nll-scaled",
    "brier",
    "brier-scaled",
    "temperature",
    "zero-shot",
    "flips",
    "gained",
    "lost",
    "aligned",
    "unaligned",
)
