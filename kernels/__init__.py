"""Kernels: one folder an operation, with its production form and its test; oracles are in tests/oracle."""
