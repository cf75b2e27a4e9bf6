"""Recovery of real models on real processes: `python -m benchmarks.recovery`."""
