"""The errors that are a user's to mend."""


class UserError(Exception):
    """Base of them all. The text says what is wrong, where, and what to do; no traceback says more."""
