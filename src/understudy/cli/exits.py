"""What a command's exit status means; which failure leads to which is in `wire.statuses`."""

from __future__ import annotations

import errno
from enum import IntEnum

from understudy.wire.errors import Code, CommandError, UnderstudyError
from understudy.wire.statuses import STATUSES


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2  # wrong arguments, configuration or input: nothing was done
    NOT_FOUND = 3
    UNAVAILABLE = 4  # nobody answers, or nobody can answer now
    TIMEOUT = 5
    UNMET = 6  # `status --check`: an app is degraded or down; `audit`: something was found
    INTERRUPTED = 130  # by Ctrl-C; what shells make of it


def exit_of(code: Code) -> Exit:
    return Exit(STATUSES[code].exit)


HINTS = {
    errno.EACCES: "the user that runs this needs the right to it",
    errno.EPERM: "the user that runs this needs the right to it",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "set data_dir to a place that can be written to",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def of_environment(error: OSError) -> UnderstudyError:
    """What the system refused, as a sentence. Raises `error` if it is about neither a file nor a lack."""
    if error.filename is None and error.errno not in HINTS:
        raise error
    where = f"{error.filename}: " if error.filename is not None else ""
    what = f"{where}{error.strerror or error}"
    return CommandError(Code.CONFIG, what, HINTS.get(error.errno or 0, ""))
