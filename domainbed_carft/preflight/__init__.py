"""A rehearsal of a sweep on this machine: what would fail or be slow is known in minutes."""
