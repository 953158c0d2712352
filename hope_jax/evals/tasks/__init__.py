"""The evaluations, one by one."""
