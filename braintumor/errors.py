"""The error whose message is meant for the person who runs the pipeline."""


class UserError(Exception):
    """Something the user can mend: the message says what happened, where, and what to do, in one line."""
