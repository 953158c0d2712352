"""The outer optimizers."""
