"""`python -m understudy` is the `understudy` command."""

import os
import signal
import sys

INTERRUPTED = 130  # as shells say it: 128 and the signal's number


def main() -> None:
    """Entry point, of which everything that takes time is imported below: Ctrl-C has nothing to undo yet."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        from understudy.cli.app import main as run

        signal.signal(signal.SIGINT, signal.default_int_handler)
    else:  # whoever started it wants no SIGINT to be heard
        from understudy.cli.app import main as run
    run()


if __name__ == "__main__":
    if (
        not sys.flags.safe_path
    ):  # `python -m` puts the directory that it is started from before everything else
        del sys.path[0]
    main()
