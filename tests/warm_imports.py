"""What the processes of `warm` find imported: the harness, and what commands import late."""

import compiled_loops as compiled_loops
from domainbed.scripts import train as train

import domainbed_carft.cli.demo
import domainbed_carft.results.formats
import domainbed_carft.runs.evaluate
import domainbed_carft.runs.export
import domainbed_carft.runs.soup
import domainbed_carft.runs.wise_ft
import domainbed_carft.sweep.launch
import domainbed_carft.sweep.printing
import domainbed_carft.sweep.upkeep  # noqa: F401
