"""The base of every error that a user can cause: the command line prints its sentence and no stack trace."""

REQUEUE = 75  # exit status that asks a scheduler to start the same command again (EX_TEMPFAIL)


class UserError(ValueError):
    """What went wrong, where (file, line, utterance), and what to do, in one sentence."""

    status = 2  # of the process


class TemporaryError(UserError):
    """What may be gone when the same command is started again: a disk that hangs, a machine that went away."""

    status = REQUEUE
