"""DomainBed's commands; each runs as `python -m domainbed.scripts.NAME`."""
