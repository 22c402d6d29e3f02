"""The error of a user's mistake."""


class UserError(ValueError):
    """A mistake the user can mend; the message is one line: what, the value seen, what is expected.

    The command line prints the message alone and exits with status 2.
    """
