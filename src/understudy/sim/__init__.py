"""The production machines of `core` under virtual time: one seed, one run, every time the same."""
