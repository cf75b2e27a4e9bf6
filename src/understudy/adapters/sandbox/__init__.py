"""Walls around other people's code: namespaces where the kernel lets us, Landlock where it doesn't."""
