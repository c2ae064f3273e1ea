import json
import sys

from domainbed import algorithms, datasets, hparams_registry

if __name__ == "__main__":
    name = sys.argv[1]
    print(
        json.dumps(
            {
                "file": algorithms.__file__,
                "class": algorithms.get_algorithm_class(name).__name__,
                "algorithms": algorithms.ALGORITHMS,
                "datasets": datasets.DATASETS,
                "environments": datasets.NUM_ENVIRONMENTS,
                "hparams": hparams_registry.default_hparams(name, "Pets"),
            }
        )
    )
