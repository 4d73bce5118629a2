"""Coverage-guided fuzzing of the parsers of client input: `python -m tests.fuzz`."""
