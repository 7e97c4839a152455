"""The error that all packages raise when the input or an option is wrong."""


class UserError(ValueError):
    """An error that the user can fix. `main` prints it on one line and exits with code 2, without a traceback."""
