"""DomainBed's commands; run each with `python -m domainbed.scripts.NAME`."""
