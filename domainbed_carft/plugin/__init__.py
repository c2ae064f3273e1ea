"""The plugin, which adds CAR-FT to any imported `domainbed` without changing its files.

The `.pth` and `.start` files in site-packages call `install`, so every interpreter loads this
module when it starts. Therefore it is small and imports neither `typing` nor `__future__`. The
other modules are loaded with the first import of domainbed.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["SWITCH", "install", "register"]

# Repeated in `hooked_modules` (a test compares them), because only this module loads at each start.
SWITCH = "DOMAINBED_CARFT_DISABLE"


class Finder:
    """A finder that calls a function of the module `finder`, imported when it is first needed.

    `find_extended_spec` finds modules of domainbed as usual, and extends them after their
    execution. `find_harness_spec` finds `domainbed` in the included harness.
    """

    def __init__(self, function_name: str) -> None:
        self._function_name = function_name

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the spec found by the function, or None for modules outside domainbed."""
        if not (fullname + ".").startswith(("domainbed.", "domainbed_carft.method.")):
            return None

        from domainbed_carft.plugin import finder

        find = getattr(finder, self._function_name)
        spec: ModuleSpec | None = find(self, fullname, path, target)
        return spec


_EXTENDING_FINDER = Finder("find_extended_spec")
_HARNESS_FINDER = Finder("find_harness_spec")


def install() -> None:
    """Hook the imports of `domainbed`, unless the switch `DOMAINBED_CARFT_DISABLE` is set.

    Any value sets the switch, except an empty one, 0, no, off and false.
    """
    if not is_switched_off():
        _add_finders()


def is_switched_off() -> bool:
    """Return True if the variable `DOMAINBED_CARFT_DISABLE` switches `install` off."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("", "0", "no", "off", "false")


def register() -> None:
    """Add CAR-FT to `domainbed`: to loaded modules now, to other modules when they are imported.

    A second call changes nothing. The variable `DOMAINBED_CARFT_DISABLE` does not apply.

    Raises:
        CarftError: if a loaded module of domainbed cannot be extended.
    """
    from domainbed_carft.plugin import additions, hooked_modules

    _add_finders()
    for name in hooked_modules.HOST_MODULES:
        if name in sys.modules:
            additions.apply(sys.modules[name])


def _add_finders() -> None:
    """Insert one finder first, to see imports of domainbed, and append one as a last resort."""
    if _EXTENDING_FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _EXTENDING_FINDER)
    if _HARNESS_FINDER not in sys.meta_path:
        sys.meta_path.append(_HARNESS_FINDER)
