"""Training: the compiled step, and the loop around it."""
