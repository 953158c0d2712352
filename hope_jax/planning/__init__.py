"""What a configuration asks of accelerators that need not be here: compiled for them, never run."""
