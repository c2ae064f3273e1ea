"""DomainBed's published interface, implemented from scratch.

The contract is facebookresearch/DomainBed at commit b93c22a: the same module names, splits, random
hyperparameters, job identities, records, selection rules and tables. No code is copied.
"""

# `domainbed_carft` distinguishes this harness from any other DomainBed by this name.
IS_CARFT_HARNESS = True
