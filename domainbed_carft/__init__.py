"""CAR-FT, context-aware robust fine-tuning of CLIP, for DomainBed.

Importing this package loads neither torch nor CLIP nor domainbed, since it happens at the
start of every interpreter of the environment that it is installed in (see `plugin`).
"""

from domainbed_carft.plugin import register, unregister

__version__ = "0.1.0"

__all__ = ["__version__", "register", "unregister"]
