REGISTRY = {"local": print}
