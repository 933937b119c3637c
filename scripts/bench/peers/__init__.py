"""The same fine-tuning run beside other frameworks, each in an environment and a process of its own."""
