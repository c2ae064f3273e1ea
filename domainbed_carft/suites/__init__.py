"""Suites of test sets for trained models: definitions, and completeness of copies.

`domainbed_carft.runs.suites` evaluates runs on them.
"""
