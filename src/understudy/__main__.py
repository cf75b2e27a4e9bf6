"""`python -m understudy` is the `understudy` command."""

import sys

if not sys.flags.safe_path:  # `python -m` puts the directory that it is started from before everything else
    del sys.path[0]

from understudy.cli.app import main

main()
