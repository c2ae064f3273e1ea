"""Figures, a module a kind; ``style`` has what they share, ``drawn`` makes the files."""
