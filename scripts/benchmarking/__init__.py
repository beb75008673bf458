"""What scripts/benchmark.py, scripts/scale.py and scripts/gpu.py are made of."""

# An environment that ends its process at its first step, with an exit code that nothing else ends with.
FIRST_STEP_MODULE, FIRST_STEP_ID, STEPPED = "benchmarking.first_step", "FirstStep-v0", 87
