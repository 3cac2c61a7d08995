"""The two errors that are answered with one line: the user's mistake, and what ends a run."""


class UsageError(ValueError):
    """A mistake in what the user asked for: one line, exit code 2."""


class RunError(Exception):
    """A run cannot go on for a reason outside the user's command: one line, exit code 1."""
