"""Release bundles."""
