"""The one exception for input that cannot be used: the command line shows it as a single line."""


class InputError(ValueError):
    """Bad input from outside: the message says what was wrong, with the value, and what to do."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read or written."""
