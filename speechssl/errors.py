"""The base of every error that a user can cause: the command line prints its sentence and no stack trace."""


class UserError(ValueError):
    """What went wrong, where (file, line, utterance), and what to do, in one sentence."""
