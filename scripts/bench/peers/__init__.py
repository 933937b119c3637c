"""The same fine-tuning in several frameworks, each in its own environment and process."""
