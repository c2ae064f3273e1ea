"""``carft preflight``: find in minutes which parts of a sweep would fail or be slow."""
