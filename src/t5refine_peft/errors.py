"""The one kind of error that a user meets: a sentence that says what was expected, what was found, what to do."""


class RefineError(Exception):
    """Something the user can put right; the command line prints its one sentence without a traceback."""
