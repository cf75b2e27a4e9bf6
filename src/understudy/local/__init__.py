"""A cluster as processes of this machine, as a library."""
