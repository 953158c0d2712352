"""How an evaluation reads with a model: scores, continues, memorizes."""
