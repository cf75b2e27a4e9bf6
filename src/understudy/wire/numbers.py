"""Numbers with their limits, in what is configured, stored and sent."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# Finite, so that sums and products of a few of them still are.
Positive = Annotated[float, Meta(gt=0, le=1e15)]
NonNegative = Annotated[float, Meta(ge=0, le=1e15)]
