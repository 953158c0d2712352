"""Learning: losses, teach signals, the chunk scan, the outer optimizer."""
