"""Where time goes: benchmarks of whole things, timings, profiles."""
