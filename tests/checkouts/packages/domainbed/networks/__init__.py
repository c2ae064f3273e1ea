"""Networks in submodules: MIRO."""

from domainbed.networks.featurizers import Featurizer  # noqa: F401
