"""DomainBed's published interface, implemented from scratch.

The contract is that of facebookresearch/DomainBed at commit b93c22a: same module names, splits,
random hyperparameters, job identities, records, selection methods and tables. The code is our own.
"""

# By this `domainbed_carft` tells this harness from any other DomainBed.
IS_CARFT_HARNESS = True
