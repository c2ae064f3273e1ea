"""The version of this package, alone: every module may import it."""

__version__ = "0.5.0"
