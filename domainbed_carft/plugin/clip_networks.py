"""The networks of a host's own algorithms, replaced by a CLIP model if ``clip_backbone`` is set.

DomainBed's algorithms call the base class ``Algorithm``, then build their networks by
``networks.Featurizer`` and ``networks.Classifier``. All three are wrapped. Without the
hyperparameter, the wrappers only call the originals.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.datasets import known_datasets
from domainbed_carft.errors import CarftError, get_job_error, raise_for
from domainbed_carft.jobs.facts import FOREIGN
from domainbed_carft.plugin import foreign_jobs
from domainbed_carft.plugin.hooked_modules import print_rates, warn_about_host_networks

KEY = "clip_backbone"

# Algorithms of DomainBed that need its own featurizers, and the reason.
UNSUPPORTED = {
    "URM": "it accepts only the classes of DomainBed's own featurizers",
    "IGA": "it differentiates gradients, which torch's attention does not support",
}


@dataclass
class Construction:
    """An algorithm of the host whose networks are being built."""

    algorithm: str
    num_classes: int | None = None
    hparams: Any = None  # as passed to the constructor
    dataset_facts: Any = None  # only in the included harness
    get_module: Callable[[], Any] = lambda: None  # the algorithm if it still exists
    network: Any = None  # HostNetwork, from the first featurizer on
    choice: Any = None  # the hyperparameters that chose the network
    is_checkout: bool = False  # the host is not the included harness


# The algorithm that was built last. Its featurizers and classifiers follow.
_latest = [Construction("the algorithm")]


def wrap_algorithm(original: Callable[..., None], is_checkout: bool) -> Callable[..., None]:
    """Wrap the `__init__` of the host's `Algorithm`, to know whose networks are built next."""
    names = _get_names(original, foreign_jobs.UPSTREAM_ARGUMENTS)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        arguments = dict(zip(names, args)) | kwargs
        _latest[:] = [
            Construction(
                algorithm=type(self).__name__,
                num_classes=arguments.get("num_classes"),
                hparams=arguments.get("hparams"),
                dataset_facts=arguments.get("dataset_facts"),
                get_module=weakref.ref(self),
                is_checkout=is_checkout,
            )
        ]

    return __init__


def wrap_apply(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `_apply` of the host's `Algorithm`, which runs when `train` moves an algorithm.

    The algorithm is complete then, so that one that has built its networks in another way ends the
    job instead of training these in silence.
    """

    @functools.wraps(original)
    def _apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        construction = _latest[0]
        if construction.get_module() is self and is_set(construction.hparams):
            _require_network(construction)
        return original(self, *args, **kwargs)

    return _apply


def _require_network(construction: Construction) -> None:
    """Raise the host's type of error if its algorithm has not built its network as it should."""
    from domainbed_carft.method import host_lookup
    from domainbed_carft.method.hosted import HostedAlgorithm

    network = construction.network
    if network is not None and network.head is not None:
        network.head.require_used()
    is_of_package = isinstance(construction.get_module(), HostedAlgorithm)
    if network is None and not is_of_package and not host_lookup.has_own_clip():
        raise get_job_error(construction.is_checkout)(
            f"{construction.algorithm} cannot train a CLIP model: it builds its networks without "
            f"networks.Featurizer, so {KEY} would have no effect. Choose another algorithm, or "
            f"omit {KEY}"
        )


def wrap_featurizer(original: Any, is_checkout: bool) -> Callable[..., Any]:
    """Wrap the host's function `networks.Featurizer`, to return the image encoder of CLIP.

    A class is not wrapped but returns the encoder when it is called, so that `isinstance` and
    subclasses work as before.
    """
    is_class = isinstance(original, type)
    function = original.__init__ if is_class else original
    names = _get_names(function, ("input_shape", "hparams"))

    def build(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        arguments = dict(zip(names, args)) | dict(kwargs)
        hparams = arguments.get("hparams")
        if not is_set(hparams):
            return None

        from domainbed_carft.method import host_lookup

        if host_lookup.has_own_clip():
            warn_about_host_networks()
            return None
        return build_featurizer(arguments["input_shape"], hparams, is_checkout)

    if is_class:
        make_object = original.__new__

        def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
            featurizer = build(args, kwargs) if cls is original else None
            return make_object(cls) if featurizer is None else featurizer

        return __new__

    @functools.wraps(original)
    def Featurizer(*args: Any, **kwargs: Any) -> Any:
        featurizer = build(args, kwargs)
        return original(*args, **kwargs) if featurizer is None else featurizer

    return Featurizer


def wrap_classifier(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the host's function `networks.Classifier`, to start from text features if requested."""
    names = _get_names(original, ("in_features", "out_features"))

    @functools.wraps(original)
    def Classifier(*args: Any, **kwargs: Any) -> Any:
        classifier = original(*args, **kwargs)
        construction = _latest[0]
        network = construction.network
        if network is not None and network.head is not None:
            arguments = dict(zip(names, args)) | kwargs
            with _ending_script(construction.is_checkout):
                network.head.fill(classifier, *(arguments[name] for name in names[:2]))
        return classifier

    return Classifier


def add_hparams(registry_values: Any, dataset: str, random_seed: int | None) -> Any:
    """Add the hyperparameters for a CLIP model to those of a host's algorithm in a checkout.

    ``train`` reads the registry before it merges ``--hparams``, so the CLIP model is read from the
    command line. Without one, the same object is returned.

    Args:
        registry_values: the defaults or draws of the host's registry.
        dataset: name of the dataset.
        random_seed: seed of random draws; None for the defaults.
    """
    given = foreign_jobs.parse_user_hparams()
    if not is_set(given):
        return registry_values

    from domainbed_carft.method import host_hparams, host_lookup

    if not host_lookup.has_replaceable_networks():
        warn_about_host_networks()
        return registry_values

    plain = {name: foreign_jobs.to_python_number(value) for name, value in registry_values.items()}
    added = host_hparams.get_added_values(plain, given, dataset, random_seed)
    rates = {name: added[name] for name in host_hparams.RATES if name in added}
    print_rates(rates, plain, given[KEY])
    return {**plain, **added}


def wrap_resolve_hparams(original: Any) -> Any:
    """Wrap the class method `resolve_hparams` of the included harness's `Algorithm`."""

    def resolve_hparams(
        cls: Any,
        dataset: str,
        given: Mapping[str, Any],
        random_seed: int | None = None,
        steps: int | None = None,
    ) -> Any:
        """Return the hyperparameters of a job, with those of a CLIP model if it is set."""
        if not is_set(given):
            return original.__func__(cls, dataset, given, random_seed, steps)

        from domainbed import hparams_registry

        from domainbed_carft.method import host_hparams

        return host_hparams.resolve(hparams_registry, cls.__name__, dataset, given, random_seed)

    return classmethod(resolve_hparams)


def wrap_image_format(original: Any) -> Any:
    """Wrap the class method `image_format` of the included harness's `Algorithm`."""

    def image_format(cls: Any, hparams: Any) -> Any:
        """Return the images that the CLIP model expects, if it is set."""
        if not is_set(hparams):
            return original.__func__(cls, hparams)

        from domainbed_carft.method import job

        return job.find_preprocessing(hparams)

    return classmethod(image_format)


def build_featurizer(input_shape: Sequence[int], hparams: Any, is_checkout: bool) -> Any:
    """Return the image encoder of the CLIP model as a featurizer of the algorithm built last.

    In a checkout, an error ends the script.
    """
    values = dict(hparams)  # the configuration object of a fork can have just keys and items
    choice = (values[KEY], values.get("clip_head"))
    if _latest[0].network is not None and _latest[0].choice != choice:
        # A featurizer that is built on its own, in a notebook
        _latest[:] = [Construction("the algorithm", is_checkout=is_checkout)]

    construction = _latest[0]
    with _ending_script(is_checkout):
        raise_for(_find_input_problems(construction.algorithm, input_shape))
        if construction.network is None:
            construction.network = _load_network(construction, hparams)
            construction.choice = choice
    return construction.network.build_featurizer()


def _find_input_problems(algorithm: str, input_shape: Sequence[int]) -> list[str]:
    """Return the reasons why an algorithm cannot train a CLIP model on these images."""
    reasons = []
    if len(input_shape) != 3 or input_shape[0] != 3:
        shape = tuple(input_shape)
        reasons = [f"its featurizer gets inputs of shape {shape}, but CLIP reads images in RGB"]
    elif algorithm in UNSUPPORTED:
        reasons = [UNSUPPORTED[algorithm]]
    advice = f"Choose another algorithm or dataset, or omit {KEY}"
    return [f"{algorithm} cannot train a CLIP model: {reason}. {advice}" for reason in reasons]


def _load_network(construction: Construction, hparams: Any) -> Any:
    """Check the hyperparameters, print the facts of the job, and load the CLIP model.

    In a checkout the facts are added to the hyperparameters, because its records have no other
    place for them.
    """
    from domainbed_carft.escaping import print_lines
    from domainbed_carft.method import host_networks, job

    algorithm = construction.algorithm
    complete = foreign_jobs.complete_host_hparams(dict(hparams))
    # The included harness has checked the names before.
    names = foreign_jobs.get_host_names(algorithm) if construction.is_checkout else ()
    raise_for(foreign_jobs.find_host_problems(algorithm, complete, names))
    facts = job.find_host_facts(
        complete,
        construction.num_classes,
        construction.dataset_facts or known_datasets.recall(complete),
    )
    print_lines(*facts.describe(), *foreign_jobs.describe_host_hparams(algorithm, complete, names))
    network = host_networks.build_network(
        algorithm, complete, facts, get_job_error(construction.is_checkout)
    )

    if construction.is_checkout:
        hparams[FOREIGN] = facts.as_record()
        if construction.hparams is not None:  # the host can have passed on a copy
            construction.hparams[FOREIGN] = facts.as_record()
    return network


def is_set(hparams: Any) -> bool:
    """Return True if the hyperparameters of a host, of any type, name a CLIP model."""
    try:
        return hparams[KEY] is not None
    except (KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _ending_script(is_checkout: bool) -> Iterator[None]:
    """Raise the host's type of error for a CarftError."""
    try:
        yield
    except CarftError as error:
        raise get_job_error(is_checkout)(*error.problems) from None


def _get_names(function: Callable[..., Any], usual_names: Sequence[str]) -> list[str]:
    """Return the names of a function's parameters, or the usual ones if it has others."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return names if {*usual_names} & {*names} else [*usual_names]
