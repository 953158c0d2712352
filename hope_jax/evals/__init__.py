"""Evaluations: what a checkpoint knows, what its memories hold, and what it forgets."""
