"""The error of the user: what a command says in one line, and a bug never becomes."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend; its text says what was wanted, what came, and what to do.

    The command prints it as one line. Any other error but those of files (OSError) is a bug of the
    kit or of a library, and keeps its traceback.
    """
