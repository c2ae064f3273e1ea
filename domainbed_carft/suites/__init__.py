"""Suites of test sets for trained models: definitions, completeness of copies, and records.

`domainbed_carft.runs.suites` evaluates runs on them.
"""
