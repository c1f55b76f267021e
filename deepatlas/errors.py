"""The error of the user: what a command says in one line, and a bug never becomes."""

from __future__ import annotations

import difflib
import errno
import reprlib
import sys
from collections.abc import Collection

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the numbers of an OSError that mean it
NOT_YOURS = (errno.EROFS, errno.EACCES, errno.EPERM)  # and that a folder may only be read

# Exit codes of the command, by which who has started it knows what to do.
FAILED = 1
NO_MEMORY = 71
CALL_AGAIN = 75  # stopped in time, or the run is another process's: later the same command goes on
STOPPED = 130  # by Ctrl-C or a signal


class UserError(ValueError):
    """Something the user can mend; its text says what was wanted, what came, and what to do.

    The command prints it as one line. Any other error but those of files (OSError) is a bug of the
    kit or of a library, and keeps its traceback.
    """


def memory_is_short(error: BaseException) -> bool:
    """Is it a MemoryError, or what PyTorch raises instead, on a GPU by a class of its own, on a CPU
    by words?
    """
    torch = sys.modules.get("torch")  # where it was not imported, nobody has raised its errors
    of_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    of_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or of_gpu or (of_cpu and "memory" in str(error))


def meant(name: str, known: Collection[str], *, all_of_them: bool = False) -> str:
    """What follows the sentence "there is no ...": the word of ``known`` that is close to ``name``;
    all of them where none is close, or if they are few enough to be listed anyway.
    """
    close = difflib.get_close_matches(name.lower(), known, 1)
    hint = f", did you mean {close[0]!r}" if close else ""
    if all_of_them or not close:
        hint += f": choose from {', '.join(known)}"
    return hint


def printable(text: str) -> str:
    """``text`` with its control characters, but line breaks and tabs, written out as in "\\x1b": a
    file's name must not steer a terminal.
    """
    shown = []
    for character in text:
        harmless = character.isprintable() or character in "\n\t"
        shown.append(character if harmless else character.encode("unicode_escape").decode())
    return "".join(shown)


def shortened(text: str, most: int = 200) -> str:
    """``text`` on one line, printable, of about ``most`` characters: a longer one loses its
    middle.
    """
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]}...{text[-half:]}"
    return " ".join(printable(text).splitlines())


def brief(value: object, most: int = 200) -> str:
    """``value`` as code would have it, on one line of about ``most`` characters, for a sentence
    that quotes it.
    """
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = most
    try:
        text = short.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = f"a very large {type(value).__name__}"
    return shortened(text, most)
