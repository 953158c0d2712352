"""Replays of numbers recorded from the published PyTorch code (`parity_tests/data`, see `docs/golden.md`)."""
