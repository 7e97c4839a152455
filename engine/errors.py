"""The error that all packages raise for a mistake of the user."""


class UserError(ValueError):
    """A mistake that the user can correct. `main` prints its one line and exits with code 2, without a traceback."""
