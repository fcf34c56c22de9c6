"""The drawn demo world, its questions, and the small model trained on it."""
