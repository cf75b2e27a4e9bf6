"""The tables that docs/generate.py writes from recovery.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KINDS = ("all", "warm", "cold", "none")
PARTS = ("detect", "ask", "prepare", "load", "answer")
NEVER = "–"
GLANCE = ("losses", "recovered", "mean, ms", "p50", "p99", "accuracy lost, first answer", "after the upgrade")
CLUSTER = ("nodes", "primaries, MB", "standbys, MB", "headroom", "requests", "not answered rightly")

Rows = dict[str, dict[str, Any]]  # figure -> row


def summary(result: dict[str, Any]) -> Iterator[str]:
    """The schemes side by side, and the aims; for the README."""
    rows, environment = _rows(result), result["environment"]
    yield f"| | {' | '.join(GLANCE)} |"
    yield f"|---|{'---:|' * len(GLANCE)}"
    for scheme in environment["schemes"]:
        yield f"| {scheme} | {' | '.join(_glance(rows, f'{scheme}, all'))} |"
    yield ""
    yield "| recovery | measured | aim | |"
    yield "|---|---:|---:|---|"
    for aim in result["aims"]:
        met = "met" if aim["met"] else "**not met**"
        yield f"| {aim['name']} | {aim['value']:.2f} | ≤ {aim['aim']} | {met} |"
    yield ""
    yield "Means in the upper table are over losses; that over apps takes each app by its own mean."
    sizes = [model["file_mb"] for model in environment["models"]]
    families = {model["family"] for model in environment["models"]}
    yield f"{len(sizes)} ONNX files of {min(sizes):.0f} to {max(sizes):.0f} MB in {len(families)} families;"
    yield "random weights, so accuracies are [those published](benchmarks/data/README.md)."
    yield f"By `make bench-recovery` ([every recovery](docs/reference/recovery.md)). {_machine(environment)}"


def _glance(rows: Rows, name: str) -> list[str]:
    recovered, times = rows[f"{name}: recovered"], rows.get(f"{name}: recovery")
    cells = [f"{recovered['n']}", f"{recovered['mean']:.0%}"]
    cells += [_ms(times, value) for value in ("mean", "median", "p99")]
    for when in ("at the first answer", "after the upgrade"):
        lost = rows.get(f"{name}: accuracy lost {when}")
        cells.append(f"{lost['mean']:.2f} %" if lost else NEVER)
    return cells


def page(result: dict[str, Any]) -> Iterator[str]:
    """Every figure, every recovery, every model."""
    rows, environment = _rows(result), result["environment"]
    yield "# Recovery of real models"
    yield ""
    yield "Every node of a cluster of real processes is killed in turn (SIGKILL to its agent and all its"
    yield "workers), under three schemes in one run, by `make bench-recovery` (`benchmarks/recovery`)."
    yield "Recovery is measured from outside:"
    yield f"{environment['mttr_ms']}."
    yield "Each app is asked steadily, and from the kill on every few milliseconds by a second client."
    yield "An answer is right if it is what the model named in it gives the image without a server."
    yield "The nodes share one machine: what fails over together competes for its cores."
    yield f"Accuracy: {environment['accuracy']}."
    yield _machine(environment)
    yield from ("", "## Schemes", "")
    yield f"| scheme | what it is | {' | '.join(CLUSTER)} |"
    yield f"|---|---|---|{'---:|' * (len(CLUSTER) - 1)}"
    sizes = [f"{node['memory_mb']:.0f} MB" for node in environment["nodes"].values()]
    for scheme, words in environment["schemes"].items():
        c = environment["clusters"][scheme]
        cells = [
            f"{len(sizes)} × {sizes[0]}",
            f"{c['primaries_mb']:,}",
            f"{c['standbys_mb']:,}",
            f"{c['headroom']:.0%}",
        ]
        cells += [f"{c['requests']:,}", f"{c['not_answered_rightly']}"]
        yield f"| {scheme} | {words} | {' | '.join(cells)} |"
    yield ""
    yield "Headroom: memory of all nodes beyond what the primaries take, as a fraction of it."
    yield "A figure of 100 % would hold everything twice."
    yield from ("", "## Figures", "")
    yield from _figures(rows, environment)
    yield from ("", "## Recoveries", "")
    yield "Times in milliseconds."
    yield ""
    yield f"| scheme | node | app | standby | before | first | at the end | recovery | {' | '.join(PARTS)} |"
    yield f"|---|---|---|---|---|---|---|---:|{'---:|' * len(PARTS)}"
    for r in environment["recoveries"]:
        variants = [r["variant_before"], r["variant_first"] or NEVER, r["variant_after"] or NEVER]
        times = [NEVER if r["mttr_ms"] is None else f"{r['mttr_ms']:.1f}"]
        times += [f"{r['parts_ms'][part]:.0f}" if part in r["parts_ms"] else "" for part in PARTS]
        yield f"| {' | '.join([r['scheme'], r['node'], r['app'], r['standby'], *variants, *times])} |"
    yield from ("", "## Models", "")
    yield "| family | variant | top-1, % (published) | file, MB | published, MB |"
    yield "|---|---|---:|---:|---:|"
    for m in environment["models"]:
        yield f"| {m['family']} | {m['variant']} | {m['top1_pct']} | {m['file_mb']} | {m['published_mb']} |"


def _figures(rows: Rows, environment: dict[str, Any]) -> Iterator[str]:
    yield f"| scheme, standby | {' | '.join([*GLANCE, *PARTS])} |"
    yield f"|---|{'---:|' * (len(GLANCE) + len(PARTS))}"
    for scheme in environment["schemes"]:
        for kind in KINDS:
            name = f"{scheme}, {kind}"
            if f"{name}: recovered" in rows:
                parts = [_ms(rows.get(f"{name}: {part}"), "mean") for part in PARTS]
                yield f"| {name} | {' | '.join([*_glance(rows, name), *parts])} |"
    yield ""
    yield "Accuracy lost: points of top-1 below the variant that served before, by the first answer and when"
    yield "the node came back. Standby *none*: nothing was planned; the app was back when the controller had"
    yield "planned anew or a node had room after all. Parts are means of the recoveries that have them:"
    yield ""
    for part, words in environment["parts"].items():
        yield f"- {part}: {words}"


def _rows(result: dict[str, Any]) -> Rows:
    return {row["figure"]: row for row in result["rows"]}


def _ms(row: dict[str, Any] | None, value: str) -> str:
    return f"{row[value]:.1f}" if row else NEVER


def _machine(environment: dict[str, Any]) -> str:
    machine = environment["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {environment['date']}."
