"""Couplings of rows that depend on values: how many pass rehearsal, and how soon work shows them.

    python tests/fuzz/couplings.py --count 400 [--seed S]

Each model returns its rows as they are, unless something in the batch meets a condition: then a row gets
something of the others. Conditions range from what happens all the time to what no draw is likely to hit. A
model that passes rehearsal then serves batches in which the condition is met by a stated share of the
requests, until a batched answer that is computed again gives it away.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import structlog

from understudy.wire.messages import Load
from understudy.wire.records import Batching, TensorSpec
from understudy.worker.batching.rechecks import Rechecks
from understudy.worker.batching.verdict import judge
from understudy.worker.model import Model, load_model
from understudy.worker.oip import Request

MODEL = """
import numpy as np

class Model:
    def load(self, path): pass
    def predict(self, inputs):
        x = inputs["x"]
        if len(x) > 1 and bool({condition}):
            x = {coupling}
        return {{"y": x}}
"""
WIDTH = 4
BATCH = 8
REQUESTS_MAX = 40_000
SHARES = (0.01, 0.1, 0.5)  # of requests that meet the condition
RECHECK_SHARE = 0.01
COUPLINGS = ("x - x.mean(0)", "np.roll(x, 1, 0)", "np.cumsum(x, 0)", "np.sort(x, 0)", "x / np.abs(x).max()")


class Planted(NamedTuple):
    kind: str
    condition: str
    coupling: str
    meets: Callable[[np.random.Generator], np.ndarray]  # a row that meets it


def planted(random: np.random.Generator) -> Planted:
    coupling = str(random.choice(COUPLINGS))
    match int(random.integers(4)):
        case 0:
            limit = float(10 ** random.uniform(-1, 7))
            return Planted(
                "above a limit",
                f"(x > {limit}).any()",
                coupling,
                lambda r: np.full(WIDTH, limit * (1 + r.random())),
            )
        case 1:
            at, width = float(random.normal(scale=5)), float(10 ** random.uniform(-4, 0))
            return Planted(
                "within a band",
                f"(np.abs(x - {at}) < {width}).any()",
                coupling,
                lambda r: np.full(WIDTH, at + width * r.uniform(-0.9, 0.9)),
            )
        case 2:
            return Planted("an exact zero", "(x == 0).all(1).any()", coupling, lambda _: np.zeros(WIDTH))
        case _:
            index = int(random.integers(WIDTH))
            return Planted(
                "one column below all others",
                f"(x.argmin(1) == {index}).all()",
                coupling,
                lambda r: np.sort(r.normal(size=WIDTH))[[*range(1, index + 1), 0, *range(index + 1, WIDTH)]],
            )


def loaded(folder: Path, plant: Planted) -> tuple[Load, Model]:
    folder.mkdir()
    (folder / "model.py").write_text(MODEL.format(condition=plant.condition, coupling=plant.coupling))
    specs = [(TensorSpec(name, "FP64", (-1, WIDTH)),) for name in "xy"]
    load = Load("r", "planted", 1, "v", "python", str(folder), {}, *specs, batching=Batching())
    return load, load_model(load, 1)[0]


def until_noticed(load: Load, plant: Planted, share: float, random: np.random.Generator) -> tuple[int, int]:
    """Requests answered in batches, and how many of them wrongly; REQUESTS_MAX if nobody noticed."""
    model, _ = load_model(load, 1)
    rechecks = Rechecks(model, load, RECHECK_SHARE, lambda: None)
    wrong = 0
    for requests in range(BATCH, REQUESTS_MAX + 1, BATCH):
        rows = [
            plant.meets(random) if random.random() < share else random.normal(size=WIDTH)
            for _ in range(BATCH)
        ]
        batch = [Request({"x": row[None]}, 1, (), None, ()) for row in rows]
        (done,) = model.execute(batch)
        assert done.outputs is not None
        wrong += sum(not np.allclose(done.outputs["y"][i], row) for i, row in enumerate(rows))
        rechecks.offer(done, worked_s=1e9)  # the share of batches counts here, not that of the time
        if rechecks.waiting:
            rechecks.conclude(rechecks.run())
        if rechecks.ended:
            return requests, wrong
    return REQUESTS_MAX, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    passed: dict[str, list[tuple[Load, Planted]]] = {}
    tried: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.count):
            plant = planted(np.random.default_rng((options.seed, number)))
            tried[plant.kind] = tried.get(plant.kind, 0) + 1
            load, model = loaded(Path(folder) / str(number), plant)
            verdict = judge(load, model)
            if verdict.together:
                load = msgspec.structs.replace(load, verdict=verdict)
                passed.setdefault(plant.kind, []).append((load, plant))
        report(options.count, tried, {kind: len(found) for kind, found in passed.items()})
        for share in SHARES:
            seen = [
                until_noticed(load, plant, share, np.random.default_rng((options.seed, i)))
                for i, (load, plant) in enumerate(pair for pairs in passed.values() for pair in pairs)
            ]
            if seen:
                report_work(share, [requests for requests, _ in seen], [wrong for _, wrong in seen])


def report(count: int, tried: dict[str, int], passed: dict[str, int]) -> None:
    total = sum(passed.values())
    sys.stdout.write(f"{count} couplings, {total} passed rehearsal ({total / count:.1%})\n")
    for kind, number in sorted(tried.items()):
        sys.stdout.write(f"  {kind}: {passed.get(kind, 0)} of {number}\n")


def report_work(share: float, requests: list[int], wrong: list[int]) -> None:
    never = sum(count == REQUESTS_MAX for count in requests)
    sys.stdout.write(
        f"met by {share:.0%} of requests: noticed after {statistics.median(requests):.0f} requests (median), "
        f"{statistics.median(wrong):.0f} wrong answers before (most: {max(wrong)}); "
        f"{never} of {len(requests)} not within {REQUESTS_MAX}\n"
    )


if __name__ == "__main__":
    main()
