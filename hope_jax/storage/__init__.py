"""What is on disk and proves itself: checkpoints, weights, saved memories."""
