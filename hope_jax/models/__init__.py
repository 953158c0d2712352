"""Models: modules that own parameters, and reads and writes for a batch of contexts."""
