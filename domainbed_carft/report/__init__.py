"""``carft report``: the results of a sweep as one page and its figures."""
