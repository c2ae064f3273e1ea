"""CAR-FT, context-aware robust fine-tuning of CLIP, for DomainBed.

Importing this package loads neither torch nor CLIP nor domainbed, since it happens at the start of
every interpreter of the environment that it is installed in (see `plugin`). The names in LAZY_NAMES
and LAZY_PACKAGES load what they need when they are first used.
"""

from domainbed_carft.plugin import register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from domainbed_carft.checks.check import check
    from domainbed_carft.jobs.differences import diff
    from domainbed_carft.method.build import build
    from domainbed_carft.results.collect import collect
    from domainbed_carft.runs.evaluate import evaluate, evaluate_on_suite, evaluate_sweep
    from domainbed_carft.runs.export import export
    from domainbed_carft.runs.run import Run
    from domainbed_carft.runs.saved import load_original, load_run
    from domainbed_carft.runs.soup import soup
    from domainbed_carft.runs.training import train
    from domainbed_carft.runs.wise_ft import wise_ft
    from domainbed_carft.version import __version__

# The functions of the Python API, and the modules that they come from.
LAZY_NAMES = {
    "__version__": "domainbed_carft.version",
    "Run": "domainbed_carft.runs.run",
    "build": "domainbed_carft.method.build",
    "check": "domainbed_carft.checks.check",
    "collect": "domainbed_carft.results.collect",
    "diff": "domainbed_carft.jobs.differences",
    "evaluate": "domainbed_carft.runs.evaluate",
    "evaluate_on_suite": "domainbed_carft.runs.evaluate",
    "evaluate_sweep": "domainbed_carft.runs.evaluate",
    "export": "domainbed_carft.runs.export",
    "load_original": "domainbed_carft.runs.saved",
    "load_run": "domainbed_carft.runs.saved",
    "soup": "domainbed_carft.runs.soup",
    "train": "domainbed_carft.runs.training",
    "wise_ft": "domainbed_carft.runs.wise_ft",
}

# Whose modules are attributes, too, such as `domainbed_carft.results.top`.
LAZY_PACKAGES = ("errors", "report", "results", "runs", "sweep")

__all__ = [
    "Run",
    "__version__",
    "build",
    "check",
    "collect",
    "diff",
    "evaluate",
    "evaluate_on_suite",
    "evaluate_sweep",
    "export",
    "load_original",
    "load_run",
    "register",
    "soup",
    "train",
    "wise_ft",
]


def __getattr__(name: str) -> object:
    """One of LAZY_NAMES or LAZY_PACKAGES, imported now; AttributeError for any other name."""
    if name in LAZY_PACKAGES:
        from domainbed_carft.lazy import import_attribute

        return import_attribute(__name__, name)
    if name not in LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    import importlib

    return getattr(importlib.import_module(LAZY_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY_NAMES, *LAZY_PACKAGES})
