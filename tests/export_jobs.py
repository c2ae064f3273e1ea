"""The export of a trained job, by the command."""

from pathlib import Path

from domainbed_carft import cli
from domainbed_carft.runs import export


def exported(job: Path, folder: Path) -> export.ExportedFiles:
    """An export by the command, in a folder."""
    weights = folder / "it's.pt"
    assert cli.main(["export", str(job), "--which", "last", "-o", str(weights)]) == 0
    return export.ExportedFiles.named_after(weights)
