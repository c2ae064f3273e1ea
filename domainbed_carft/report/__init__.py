"""``carft report``: what a sweep came to, as one page and its figures."""
