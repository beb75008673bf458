"""`rlrun -m ...`: many runs by one command, and at its end a table that says what became of each."""

CORES = "RLRUN_CORES"  # the environment variable that tells a job how many cores are its own
