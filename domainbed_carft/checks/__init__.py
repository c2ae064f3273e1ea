"""`carft check`: properties that every method has, each checked on the small CLIP with noise.

Importing this package registers the stand-in device, which has to happen before the first backward
pass of a process.
"""

from domainbed_carft.machine import stand_in_device as stand_in_device
