"""Data: text, tokenizer, and the batches that training reads."""
