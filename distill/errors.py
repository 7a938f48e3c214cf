"""What is a user's mistake, and how it reads: one clear line, no traceback. Anything else keeps its traceback."""

from types import TracebackType

OURS = ("distill", "distill_methods")


class UserError(ValueError):
    """A recipe, file, checkpoint or argument that does not fit: the value, what was expected, where, what next."""


class Stopped(Exception):
    """A run that ended before its last update, at a saved state.

    Attributes:
        code: the exit code of the command.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def user_line(error: BaseException) -> str | None:
    """The text for the user, or None where the error is a fault of the program.

    A UserError is the user's; so is a ValueError that our own code raised (one from inside a library is a bug of
    ours), and an error of the operating system (no such file, no permission, disk full), also where a library passes
    it on in its own words.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ValueError) and _raised_in(error.__traceback__).split(".")[0] in OURS:
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError" and "I/O error" in str(error):
        return " ".join(str(error).split()) or None
    return None


def _raised_in(trace: TracebackType | None) -> str:
    """The module of the frame that raised."""
    module = ""
    while trace:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module
