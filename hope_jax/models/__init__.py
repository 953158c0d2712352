"""Models: the blocks' parts and parameters, and reads and writes for a batch of contexts."""
