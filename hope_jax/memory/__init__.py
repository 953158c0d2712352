"""Memories: what a context writes into, written for one example and one layer."""
