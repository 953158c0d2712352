"""What every room may use: types, trees, errors, paths and output."""
