"""Measurements beside the alternatives: ratios of things measured in one run. None asserts a time."""
