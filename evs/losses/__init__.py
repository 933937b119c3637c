"""The objective of training, and the language model head that computes it in chunks."""
