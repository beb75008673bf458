"""`rlrun tune`: a search for hyperparameters whose trials are ordinary runs."""
