"""Adds CAR-FT to whichever `domainbed` gets imported, without touching its files.

The `.pth` and `.start` files in site-packages call `install`, so every interpreter loads this
module when it starts: it is small, imports neither `typing` nor `__future__`, and the rest loads
with the first import of domainbed.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["SWITCH", "install", "register"]

# Repeated in `hooked_modules`, which a test compares: only this module loads at every start.
SWITCH = "DOMAINBED_CARFT_DISABLE"


class Finder:
    """Finds modules by a function of the module `finder`, imported with the first relevant module.

    `extended_spec` finds domainbed's modules as usual, and extends them after their execution;
    `harness_spec` serves `domainbed` from our own harness if no other is found.
    """

    def __init__(self, function_name: str) -> None:
        self._function_name = function_name

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec that the function returns; None for modules that are not domainbed's."""
        if not (fullname + ".").startswith(("domainbed.", "domainbed_carft.method.")):
            return None

        from domainbed_carft.plugin import finder

        find = getattr(finder, self._function_name)
        spec: ModuleSpec | None = find(self, fullname, path, target)
        return spec


_EXTENDING_FINDER = Finder("extended_spec")
_HARNESS_FINDER = Finder("harness_spec")


def install() -> None:
    """Hook the imports of `domainbed`, unless the switch `DOMAINBED_CARFT_DISABLE` is set.

    Any value sets the switch, except an empty one, 0, no, off and false.
    """
    if not switched_off():
        _add_finders()


def switched_off() -> bool:
    """Whether the variable `DOMAINBED_CARFT_DISABLE` switches `install` off."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("", "0", "no", "off", "false")


def register() -> None:
    """Add CAR-FT to `domainbed`: to loaded modules now, to others when they are imported.

    A second call changes nothing, and the switch does not apply. Raises CarftError if a loaded
    module of domainbed cannot be extended.
    """
    from domainbed_carft.plugin import additions, hooked_modules

    _add_finders()
    for name in hooked_modules.HOST_MODULES:
        if name in sys.modules:
            additions.apply(sys.modules[name])


def _add_finders() -> None:
    """Put one finder first, to see domainbed's imports, and one last, as a last resort."""
    if _EXTENDING_FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _EXTENDING_FINDER)
    if _HARNESS_FINDER not in sys.meta_path:
        sys.meta_path.append(_HARNESS_FINDER)
