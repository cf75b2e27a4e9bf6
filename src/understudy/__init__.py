"""Understudy: a model server that keeps answering."""

__version__ = "0.1.0"
