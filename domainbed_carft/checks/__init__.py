"""Checks of the properties that every method must have, for `carft check`."""
