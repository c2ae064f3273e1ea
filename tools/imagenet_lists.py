"""Makes the lists of ImageNet and its shifts: ids, masks, class names.

    pip download --no-deps --dest W timm==1.0.31 clip_benchmark==1.6.2
    python tools/imagenet_lists.py --wheels W --mappings objectnet-1.0/mappings [--check]

The ids and the 200 classes of ImageNet-A and -R are timm's, the class names OpenAI's as
CLIP_benchmark has them; ``--mappings`` is the folder in ObjectNet's own archive (mlfoundations'
wise-ft at 58b7a4b keeps a copy in src/datasets/objectnet_metadata). ``--check`` only compares.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

from domainbed_carft.suites import imagenet

ASSETS = Path(imagenet.__file__).parent.parent / "assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--mappings", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()

    def member(package: str, name: str) -> str:
        (wheel,) = arguments.wheels.glob(f"{package}-*.whl")
        return zipfile.ZipFile(wheel).read(f"{package}/{name}").decode()

    ids = member("timm", "data/_info/imagenet_synsets.txt").split()
    shifts = {
        kind: member("timm", f"data/_info/imagenet_{kind}_indices.txt").split() for kind in "ar"
    }
    lists = {
        "ids": " ".join(ids),
        "imagenet-a": " ".join(shifts["a"]),
        "imagenet-r": " ".join(shifts["r"]),
        "objectnet": imagenet.objectnet_class_labels(arguments.mappings),
    }
    names = json.loads(member("clip_benchmark", "datasets/en_classnames.json"))["imagenet1k"]
    made = {
        ASSETS / "suites" / "imagenet.json": json.dumps(lists, indent=1, sort_keys=True) + "\n",
        ASSETS / "class_names" / "imagenet.txt": "\n".join(names) + "\n",
    }
    for path, text in made.items():
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path} is another")


if __name__ == "__main__":
    main()
