"""The demonstration: real models on real data, a cluster, faults, and what its clients saw."""
