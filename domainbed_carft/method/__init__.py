"""The method of the paper and its peers: formulas, algorithms, hyperparameters, prompts."""
