"""Makes CAR-FT known to whichever `domainbed` gets imported, without touching its files.

Only this package knows the inside of a foreign `domainbed`. The `.pth` and `.start` files in
site-packages call `install`, hence in the jobs that a sweep starts as well.

This module is loaded at the start of every interpreter of the environment. So it is small, the
other parts load with the first import of domainbed, and `typing` and `__future__` are done without.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["SWITCH", "install", "register", "unregister"]

# `names` has it again, which a test compares: this module alone loads at every start.
SWITCH = "DOMAINBED_CARFT_DISABLE"


class Finder:
    """Has modules found by a function of `finder`, which loads with the first that is of interest.

    `extended_spec` has domainbed's modules found as always, and extended after their execution;
    `harness_spec` serves `domainbed` from our own harness if nobody else has one.
    """

    def __init__(self, find: str) -> None:
        self._find = find

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Return a module's spec as the function has it; None for modules of others."""
        if not (fullname + ".").startswith(("domainbed.", "domainbed_carft.method.")):
            return None
        from domainbed_carft.plugin import finder

        spec: ModuleSpec | None = getattr(finder, self._find)(self, fullname, path, target)
        return spec


_FIRST, _LAST = Finder("extended_spec"), Finder("harness_spec")


def install() -> None:
    """Hook the imports of `domainbed`, unless the switch `DOMAINBED_CARFT_DISABLE` is set.

    The switch counts as set by anything but nothing, 0, no, off and false.
    """
    if not switched_off():
        _hook()


def switched_off() -> bool:
    """Whether the environment holds `install` back."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("", "0", "no", "off", "false")


def register() -> None:
    """Add CAR-FT to `domainbed`: at once to what is loaded, later to what is still to come.

    Calling it again changes nothing. It is explicit, so the switch does not hold it back.

    Raises:
        CarftError: if a loaded module of domainbed cannot be extended.
    """
    from domainbed_carft.plugin import additions, names

    _hook()
    for name in names.HOST_MODULES:
        if name in sys.modules:
            additions.apply(sys.modules[name])


def unregister() -> None:
    """Take everything back: afterwards domainbed's modules are as they were before us."""
    from domainbed_carft.plugin import additions

    for finder in (_FIRST, _LAST):
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
    additions.withdraw()


def _hook() -> None:
    """Put one finder at the front, to see domainbed first, and one at the end, as last resort."""
    if _FIRST not in sys.meta_path:
        sys.meta_path.insert(0, _FIRST)
    if _LAST not in sys.meta_path:
        sys.meta_path.append(_LAST)
