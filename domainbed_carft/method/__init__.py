"""The method of the paper: objective, algorithms, hyperparameters, words, CLIP."""
