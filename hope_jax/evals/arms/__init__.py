"""What an evaluation compares: memories, controls, fine-tuning."""
