"""One training job: its arguments and identity, its folder, its records, the sweep it is of."""
