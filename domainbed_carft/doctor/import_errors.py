"""Failed imports: what went wrong, and what to install."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

# What pip installs a module by, where it is not the module's name.
DISTRIBUTIONS = {
    "pkg_resources": "'setuptools<82'",
    "clip": "clip-anytorch",
    "PIL": "pillow",
    "backpack": "backpack-for-pytorch",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def import_error(module: str) -> BaseException | None:
    """What the import of ``module`` raises, None if it works."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return error
    return None


def error_message(error: BaseException) -> str:
    """In one line, with the error's type unless the message of an ImportError says it all."""
    message = " ".join(str(error).split())
    if isinstance(error, ImportError) and message:
        return message
    return f"{type(error).__name__}: {message}"


def installation_command(error: BaseException) -> str:
    """How to install the module that ``error`` says is missing; "" if that is not its cause."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""

    top_module = error.name.partition(".")[0]
    return "" if top_module == "domainbed" else pip_command([top_module])


def pip_command(modules: Sequence[str]) -> str:
    """How to install these ``modules``."""
    return " ".join(["pip install", *(DISTRIBUTIONS.get(name, name) for name in modules)])
