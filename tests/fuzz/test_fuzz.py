"""A short fuzz run of each target; `make fuzz` is the long one."""

from __future__ import annotations

from random import Random

import control_target
import fuzzing
import pytest
from run import TARGETS

COUNT = 3000
SEED = 20


@pytest.mark.parametrize("name", TARGETS)
def test_thousands_of_inputs_do_no_harm(name: str) -> None:
    report = fuzzing.run(TARGETS[name], SEED, 0, COUNT)
    assert not report.findings, f"{report.findings[0].error}\ninput: {report.findings[0].pieces}"
    assert report.inputs == COUNT
    assert len(report.outcomes) >= 3, "the inputs are all alike"


@pytest.mark.parametrize("name", TARGETS)
def test_an_input_depends_on_its_number_and_the_seed_alone(name: str) -> None:
    target = TARGETS[name]()
    first = [target.generate(fuzzing.rng_of(SEED, number)) for number in range(50)]
    again = [TARGETS[name]().generate(fuzzing.rng_of(SEED, number)) for number in reversed(range(50))]
    assert first == again[::-1]
    assert all(fuzzing.read(fuzzing.written(pieces)) == pieces for pieces in first)


def test_a_serial_beyond_those_of_stores_is_refused() -> None:
    headers = b"host: 127.0.0.1:80\nauthorization: Bearer " + control_target.TOKEN.encode()
    request = [b"GET /v1/events?after=" + b"9" * 19, headers, b""]
    assert control_target.ControlTarget().check(request) == "others refused with 400"


class Faulty:
    """Fails, hangs and grows, each for a certain input."""

    name = "faulty"
    kept: list[bytes] = []  # noqa: RUF012

    def generate(self, rng: Random) -> list[bytes]:
        return [rng.randbytes(2)]

    def check(self, pieces: list[bytes]) -> str:
        kind = int.from_bytes(pieces[0], "big") % 1000
        if kind == 0:
            raise ValueError("zero")
        while kind == 1:
            pass
        self.kept.append(bytes(50_000))  # a process that held more before may have room for these
        self.kept.extend(bytes(10) for _ in range(100))
        return "fine"


def test_failures_hangs_and_growth_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "HANG_S", 0.5)
    monkeypatch.setattr(fuzzing, "WATCH_S", 0.05)
    report = fuzzing.run(Faulty, SEED, 0, 1500)
    errors = [finding.error for finding in report.findings]
    assert any("ValueError: zero" in error for error in errors)
    assert any("Hang" in error for error in errors)
    assert report.grew
    Faulty.kept.clear()
