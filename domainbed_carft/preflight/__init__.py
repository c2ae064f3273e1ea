"""A rehearsal of a declared sweep on this machine: what would fail or be slow is known in minutes.

`rehearsal.rehearse` takes each of its parts in turn. A part yields findings as
`carft doctor` does, of the real data, CLIP, batch and device.
"""
