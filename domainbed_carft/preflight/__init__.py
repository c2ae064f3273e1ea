"""A rehearsal of a declared sweep on this machine: what would fail or be slow is known in minutes.

`rehearsal.rehearse` takes each of its parts in turn. A part yields `rows.Row`, each a finding as
`carft doctor` makes them, of the real data, CLIP, batch and device.
"""
