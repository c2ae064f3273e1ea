"""Parts shared by DomainBed's scripts."""
