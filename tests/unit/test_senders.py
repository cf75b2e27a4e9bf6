"""The table of who may send what, walked."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from understudy.wire.errors import ProtocolError
from understudy.wire.frames import FrameDecoder
from understudy.wire.messages import Target, decode_message
from understudy.wire.records import RouteTable
from understudy.wire.senders import REVISION_MAX, SENDERS, check_sender

ROLES = ("agent", "controller", "gateway", "worker", "")
SAMPLES = json.loads((Path(__file__).resolve().parents[1] / "data" / "wire-samples-v1.json").read_text())
MESSAGES = [
    decode_message(frame)
    for sample in SAMPLES.values()
    for frame in FrameDecoder().feed(bytes.fromhex(sample["frame"]))
]


@pytest.mark.parametrize(("sender", "receiver"), list(product(ROLES, ROLES)))
def test_what_the_table_does_not_list_is_refused(sender: str, receiver: str) -> None:
    listed = SENDERS.get((sender, receiver), frozenset())
    for message in MESSAGES:
        if type(message) in listed:
            check_sender(sender, receiver, message)
        else:
            with pytest.raises(ProtocolError):
                check_sender(sender, receiver, message)
    check_sender(sender, receiver, None)  # of a newer version


@pytest.mark.parametrize("revision", [REVISION_MAX, 2**62, -2])
def test_an_absurd_revision_is_refused(revision: int) -> None:
    for sender, receiver, message in (
        ("controller", "agent", Target(revision, ())),
        ("controller", "gateway", RouteTable(revision)),
    ):
        with pytest.raises(ProtocolError, match="revision"):
            check_sender(sender, receiver, message)
