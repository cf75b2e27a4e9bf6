"""The name of a request, in its answer and in whatever is logged about it."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping

REQUEST_ID = b"x-request-id"
_sane = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}").fullmatch


class RequestIds:
    """Names for the requests of one process; others that serve the same port have another prefix."""

    def __init__(self) -> None:
        self._prefix = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    def of(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The client's own name for its request, if that is harmless in a log and a header; else a new one.

        It is a name, not a secret: the next one can be guessed.
        """
        given = headers.get(REQUEST_ID)
        if given is not None and _sane(given):
            return given
        return b"%b-%x" % (self._prefix, next(self._numbers))
