"""The session of a command: flags from configurations, progress, questions, tables."""
