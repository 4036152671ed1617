"""A small model with its data, and what `kanna demo` shows on it."""
