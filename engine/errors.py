"""The error that all packages raise for invalid input or options."""


class UserError(ValueError):
    """An error that the user can fix. `main` prints a one-line message without a traceback and exits with code 2."""
