"""The suite: what is asked for, run, kept, compared and shown."""
