"""`python -m understudy` is the `understudy` command."""

from understudy.cli.app import main

main()
