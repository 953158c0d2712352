"""Targets as the recorded cases define them."""

import numpy as np

from parity_tests.golden_file import Golden


def next_targets(g: Golden) -> np.ndarray:
    """The token after each position [B, T]; -1 after the last one without `next_tokens`, or if ignored."""
    tokens = g.inputs["tokens"]
    last = np.full((len(tokens), 1), -1)
    if "next_tokens" in g.inputs:
        last = g.inputs["next_tokens"].reshape(-1, 1)
    targets = np.concatenate([tokens[:, 1:], last], axis=1)
    ignored = g.config["ignore_index"]
    return targets if ignored is None else np.where(targets == ignored, -1, targets)
