"""Kernels: one folder an operation, with its oracle (`naive`), its production form and its test."""
