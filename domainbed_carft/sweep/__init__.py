"""Declared sweeps: which jobs there are, in what state they are, and how to get them done."""
