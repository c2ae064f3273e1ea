"""Export a trained job with `carft export`."""

from pathlib import Path

from domainbed_carft import cli
from domainbed_carft.runs import export


def exported(job: Path, folder: Path) -> export.ExportedFiles:
    weights = folder / "it's.pt"
    assert cli.main(["export", str(job), "--which", "last", "-o", str(weights)]) == 0
    return export.ExportedFiles.named_after(weights)
