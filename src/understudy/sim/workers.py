"""A worker process: blank, then one replica, with a queue of its own."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from understudy.core.planning.footprint import load_ms, replica_mb
from understudy.sim.clock import Process
from understudy.sim.network import End
from understudy.wire.errors import Code
from understudy.wire.frames import Buffer, FrameDecoder
from understudy.wire.messages import Cancel, Failure, Kind, Pong, Result, decode_message, encode_message
from understudy.wire.records import AppVersion, Variant

QUEUE_MAX = 256


class Worker:
    """`slow` stretches its inferences; `fails` makes them fail; its process may be paused or killed."""

    def __init__(self, name: str, process: Process, random: Random) -> None:
        self.name = name
        self.process = process
        self.state = "blank"
        self.app = ""
        self.version = 0
        self.variant: Variant | None = None
        self.slow = 1.0
        self.fails = False
        self._random = random
        self._free_s = 0.0  # when the inference that runs, and those that wait, are done
        self._queued = 0

    @property
    def memory_mb(self) -> float:
        return replica_mb(self.variant) if self.variant is not None else 0.0

    def be_well(self) -> None:
        self.slow, self.fails = 1.0, False

    def load(self, app: AppVersion, variant: Variant, done: Callable[[float], None]) -> None:
        self.state, self.app, self.version, self.variant = "loading", app.app, app.version, variant
        took_ms = load_ms(variant) * (0.8 + 0.4 * self._random.random())

        def loaded() -> None:
            self.state = "ready"
            done(took_ms)

        self.process.after(took_ms / 1000, loaded)

    def accept(self, end: End) -> None:
        """A connection of a gateway."""
        decoder = FrameDecoder()

        def received(message: tuple[bytes, Buffer]) -> None:
            for frame in decoder.feed(message[0] + bytes(message[1])):
                if frame.kind == Kind.INFER:
                    self._infer(end, frame.stream)
                elif frame.kind == Kind.PING:
                    end.send(encode_message(Pong(), frame.stream))
                else:
                    assert isinstance(decode_message(frame), Cancel)

        end.received = received

    def _infer(self, end: End, stream: int) -> None:
        if self._queued >= QUEUE_MAX or self.state != "ready":
            code = Code.BUSY if self.state == "ready" else Code.DRAINING
            end.send(encode_message(Failure(code, "not now"), stream))
            return
        assert self.variant is not None
        assert self.variant.profile is not None
        took_s = self.variant.profile.latency_ms / 1000 * self.slow * (0.8 + 0.4 * self._random.random())
        self._queued += 1
        self._free_s = max(self._free_s, self.process.clock.now) + took_s

        def answer() -> None:
            self._queued -= 1
            if self.fails:
                end.send(encode_message(Failure(Code.MODEL_FAILED, "told to fail"), stream))
            else:
                header = Result(round(took_s * 1e6), 0, 1)
                frame = encode_message(header, stream)
                end.send(frame)

        self.process.after(self._free_s - self.process.clock.now, answer)
