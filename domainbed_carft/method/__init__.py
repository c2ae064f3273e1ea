"""CAR-FT and its peers: formulas, algorithms, hyperparameters, prompts."""
