"""Ways to run command lines."""

REGISTRY = {"local": print}
