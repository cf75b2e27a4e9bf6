"""Whether a replica lives, works, stands still or hangs; and how often it is asked.

Life is shown by the process, progress by the work. A probe that isn't answered says only that something
comes before it. What that is, is seen from outside: which batch runs since when, whether the worker's loop
answers, whether its process uses the processor or is stopped. How long a batch may take follows from the
app's deadline, the time that its requests had, and the variant's own measured latency.

Probing costs a bounded share of one core per node, half of it for signs of life and half for inferences:
the more replicas and the slower their models, the rarer. An answered request is as good as a probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from understudy.settings.agent import AgentTuning

ASKING_S = 0.001  # processor time of a question and its answer, agent and worker together (measured with 40)


@dataclass(frozen=True, slots=True)
class Signs:
    """What is seen of a worker that owes the answer to a probe."""

    waited_s: float  # since the probe was sent
    heard: bool = False  # its loop answers
    stopped: bool = False  # its process: by a signal, or frozen with its cgroup
    cpu_s: float = 0.0  # processor time that it has used since the look before
    moved: bool = False  # a batch has ended since the look before
    running_s: float | None = None  # the present batch, so far; None: none is running
    rows: int = 0  # of that batch
    budget_s: float = 0.0  # the longest time that one of its requests had left when it began


class Verdict(StrEnum):
    BUSY = "busy"  # it works
    STILL = "still"  # neither speaks nor works: out of rotation, and replaced if it stays so
    OVERDUE = "overdue"  # it works at something that nobody can be waiting for any more: out of rotation
    HUNG = "hung"  # for far too long: to be replaced


@dataclass(slots=True)
class Vitality:
    """What an agent knows of one replica's life. Times in seconds, monotonic."""

    asked: bool = False  # a probe is on its way
    ask_at_s: float = math.inf
    failures: int = 0  # in a row
    still: bool = False  # what is held against it is that it stood still, or was overdue
    proven_s: float = -math.inf  # when an inference succeeded last
    latency_s: float = 0.0  # of one row, measured
    deadline_s: float = 0.0  # of its app

    def begin(self, now: float, latency_s: float, deadline_s: float, interval_s: float) -> None:
        """It is loaded, which ended in an inference."""
        self.asked, self.failures, self.still = False, 0, False
        self.proven_s, self.ask_at_s = now, now + interval_s
        self.latency_s, self.deadline_s = latency_s, deadline_s

    def passed(self, now: float, proven_ago_s: float) -> None:
        self.asked, self.failures, self.still = False, 0, False
        self.proven_s = max(self.proven_s, now - proven_ago_s)

    def asks_for_proof(self, now: float, replicas: int, tuning: AgentTuning) -> bool:
        """Note a probe, and whether it is to be an inference; else a no-op through the model's queue will do.

        `replicas`: how many share what probing may cost.
        """
        share = replicas / (tuning.probe_core_fraction / 2)
        interval_s = tuning.probe_interval_ms / 1000
        self.asked = True
        self.ask_at_s = now + max(interval_s, share * ASKING_S)
        return now - self.proven_s >= max(interval_s, share * (ASKING_S + self.latency_s)) - interval_s / 2

    def judge(self, signs: Signs, tuning: AgentTuning) -> tuple[Verdict, str]:
        """What is to be thought of a worker that owes an answer, and why."""
        if signs.stopped:
            return Verdict.STILL, "its process is stopped"
        usual_s = tuning.hang_latency_factor * self.latency_s * max(signs.rows, 1)
        permitted_s = max(self.deadline_s, signs.budget_s, usual_s, tuning.hang_ms_min / 1000)
        works = signs.heard or signs.cpu_s > 0.0
        if signs.running_s is None:
            if signs.moved or (not signs.heard and works and signs.waited_s <= permitted_s):
                return Verdict.BUSY, "its queue moves"
            return Verdict.STILL, "its queue doesn't move" if signs.heard else "it doesn't answer"
        what = f"a batch has been running for {signs.running_s:.1f} s, where {permitted_s:.1f} s is much"
        if signs.running_s > tuning.hang_factor * permitted_s:
            return Verdict.HUNG, what
        return (Verdict.OVERDUE if signs.running_s > permitted_s else Verdict.BUSY), what
