"""The configuration: its keys, where their values come from, what cannot run, and the shipped runs."""
