"""Whole test sets for a trained model: what they are, whether a copy is complete, how they score.

`domainbed_carft.runs.suites` measures runs on them.
"""
