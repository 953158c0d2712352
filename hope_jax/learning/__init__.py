"""Learning: teach signals, the body of one chunk, the training modes, streams and sampling."""
