"""Write ``assets/sweep.schema.json``, by which editors check a declared sweep.

python tools/sweep_schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

import domainbed_carft
from domainbed_carft.sweep.declaration import Shape

PATH = Path(domainbed_carft.__file__).parent / "assets" / "sweep.schema.json"


def made() -> str:
    """The schema, as pydantic makes it of the model."""
    return json.dumps(Shape.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(made(), encoding="utf-8")
