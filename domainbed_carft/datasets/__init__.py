"""The package's own datasets with DomainBed's interface; facts that datasets tell algorithms."""
