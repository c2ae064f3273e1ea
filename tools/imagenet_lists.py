"""Write the lists of ImageNet and its shifts: ids, labels, class names.

    pip download --no-deps --dest W timm==1.0.31 clip_benchmark==1.6.2
    python tools/imagenet_lists.py --wheels W --mappings objectnet-1.0/mappings [--check]

The ids and the 200 classes of ImageNet-A and ImageNet-R are from timm. The class names are from
OpenAI, by CLIP_benchmark. ``--mappings`` is a folder in ObjectNet's archive (there is a copy in
mlfoundations' wise-ft at 58b7a4b, src/datasets/objectnet_metadata). ``--check`` only compares the
files.
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

    def read_member(package: str, name: str) -> str:
        (wheel,) = arguments.wheels.glob(f"{package}-*.whl")
        return zipfile.ZipFile(wheel).read(f"{package}/{name}").decode()

    ids = read_member("timm", "data/_info/imagenet_synsets.txt").split()
    shifts = {
        kind: read_member("timm", f"data/_info/imagenet_{kind}_indices.txt").split()
        for kind in "ar"
    }
    lists = {
        "ids": " ".join(ids),
        "imagenet-a": " ".join(shifts["a"]),
        "imagenet-r": " ".join(shifts["r"]),
        "objectnet": imagenet.objectnet_class_labels(arguments.mappings),
    }
    names = json.loads(read_member("clip_benchmark", "datasets/en_classnames.json"))["imagenet1k"]
    texts = {
        ASSETS / "suites" / "imagenet.json": json.dumps(lists, indent=1, sort_keys=True) + "\n",
        ASSETS / "class_names" / "imagenet.txt": "\n".join(names) + "\n",
    }
    for path, text in texts.items():
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path} differs from the generated file; run without --check")


if __name__ == "__main__":
    main()
