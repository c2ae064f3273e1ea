"""Benchmark datasets: facts, listing, verification and download."""
