"""Several devices and processes: where arrays live, who is there, how they stop together."""
