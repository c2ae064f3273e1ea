"""Checks of the properties that every method must have, for `carft check`.

Importing this package registers the stand-in device. Torch requires that before the first backward
pass of a process.
"""

from domainbed_carft.machine import stand_in_device as stand_in_device
