"""Writes what is drawn from code and measurements: the reference pages, and the figures in the README.

`make docs` runs it; tests/tidy compares the pages with what it would write.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, StrEnum
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
from benchmarks import planning
from benchmarks.evaluation import page as evaluation
from benchmarks.evaluation import plots
from benchmarks.recovery import page as recovery

from understudy import registry
from understudy.cli.exits import exit_of
from understudy.core import lifecycle
from understudy.core.gateway import lifecycles
from understudy.gateway import answers, grpc_answers, openapi
from understudy.settings.cluster import ClusterConfig
from understudy.settings.gateway import GatewayTuning
from understudy.settings.manifest import AppManifest
from understudy.settings.security import KeyFile
from understudy.wire import errors

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
README = ROOT / "README.md"
EVALUATION = ROOT / "docs" / "evaluation.md"
PLANNING = ROOT / "docs" / "planning.md"
RESULTS = ROOT / "benchmarks" / "results"
Figures = Callable[[dict[str, Any]], Iterator[str]]
BOUND_MAX = 1e15  # beyond it, a limit is that of numbers and no setting's own
NOTICE = "<!-- Written by docs/generate.py. Change the code, then run `make docs`. -->"


def pages() -> dict[Path, str]:
    """Every generated page with the content that it should have."""
    contents = {
        "settings.md": settings_page(),
        "events.md": events_page(),
        "errors.md": errors_page(),
        "lifecycles.md": lifecycles_page(),
    }
    generated = {REFERENCE / name: f"{NOTICE}\n\n{text.strip()}\n" for name, text in contents.items()}
    generated[REFERENCE / "openapi.json"] = openapi_document()
    if (results := RESULTS / "faults.json").exists():
        text = "\n".join(faults_page(json.loads(results.read_text())))
        generated[REFERENCE / "faults.md"] = f"{NOTICE}\n\n{text.strip()}\n"
    if (results := RESULTS / "evaluation.json").exists():
        text = "\n".join(evaluation.page(json.loads(results.read_text())))
        generated[REFERENCE / "evaluation.md"] = f"{NOTICE}\n\n{text.strip()}\n"
    if (results := RESULTS / "recovery.json").exists():
        text = "\n".join(recovery.page(json.loads(results.read_text())))
        generated[REFERENCE / "recovery.md"] = f"{NOTICE}\n\n{text.strip()}\n"
    figures: dict[Path, dict[str, Figures]] = {
        README: {
            "demo": demo_figures,
            "peers": peers_figures,
            "faults": faults_figures,
            "recovery": recovery.summary,
        },
        EVALUATION: {"evaluation": evaluation.summary},
        PLANNING: {"plan": planning.table},
    }
    return generated | {path: with_figures(path.read_text(), blocks) for path, blocks in figures.items()}


def openapi_document() -> str:
    """The REST API with the default limits."""
    return json.dumps(openapi.document(GatewayTuning()), indent=1) + "\n"


# Figures in hand-written pages


def with_figures(text: str, blocks: dict[str, Figures]) -> str:
    """`text` with the figures between its marks replaced by those of the newest results."""
    for name, figures in blocks.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            block = "\n".join(figures(json.loads(path.read_text())))
            marks = rf"(<!-- figures: {name} -->\n).*?(<!-- end of figures -->)"
            text = re.sub(marks, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    return text


def demo_figures(report: dict[str, Any]) -> Iterator[str]:
    totals, environment = report["totals"], report["environment"]
    lost = totals["accuracy_before"] - totals["accuracy_during"]
    rows = [
        ("requests failed, critical apps", f"{totals['failed_critical']}", "0", ""),
        ("requests failed, all apps", f"{totals['failed']} of {totals['requests']:,}", "", ""),
        (
            "recovery with a warm standby, mean",
            f"{totals['mttr_warm_ms_mean']:.1f} ms",
            "≤ 20 ms",
            "175.5 ms",
        ),
        ("recovery from disk (cold), mean", f"{totals['mttr_cold_ms_mean']:.1f} ms", "≤ 175 ms", "175.5 ms"),
        ("accuracy lost while failed over", f"{100 * lost:.1f} %", "", "0.6 %"),
        ("memory spent on protection", f"{totals['memory_overhead_pct']:.0f} %", "", ""),
    ]
    yield "| while workers, a node and the controller are killed | measured | aim | FailLite, as published |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
    yield f"By `make demo`, seen from outside by its load generator. {_machine(environment)}"


# A figure, as benchmarks/compare.py names it -> the heading of its column
COLUMNS = {
    "JSON, 32 connections: throughput": "JSON, requests/s",
    "JSON, 32 connections: p99": "p99, ms",
    "JSON, open loop at 70% of its capacity: p99": "p99 at 70 % of that, open loop, ms",
    "JSON, open loop at 200/s: p99": "p99 at 200/s, open loop, ms",
    "image, 8 connections: throughput": "image, requests/s",
    "gRPC, 32 calls: throughput": "gRPC, requests/s",
}
SMALL, *_, IMAGE, GRPC = COLUMNS


def peers_figures(result: dict[str, Any]) -> Iterator[str]:
    medians = _medians(result)
    yield f"| | {' | '.join(COLUMNS.values())} |"
    yield f"|---|{'---:|' * len(COLUMNS)}"
    for name in _fastest_first(medians, SMALL):
        cells = [_cell(medians.get(f"{name}, {figure}"), figure) for figure in COLUMNS]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield "![Requests per second of Understudy and its peers](docs/reference/peers.svg)"
    yield ""
    yield from _aims(result, "ratio of throughputs, JSON; time added")
    yield ""
    environment = result["environment"]
    for what, why in environment["missing"].items():
        yield f"Not measured: {what} ({why})."
    for what, share in environment.get("disturbed", {}).items():
        yield f"Disturbed: {what} (others used {share:.0%} of the machine)."
    yield f"By `make bench`, medians of {environment['rounds']} rounds. {_machine(environment)}"


def _aims(result: dict[str, Any], what: str) -> Iterator[str]:
    yield f"| {what} | measured | aim | |"
    yield "|---|---|---|---|"
    for aim in result["aims"]:
        sign = "≥" if aim["better"] == "higher" else "≤"
        met = "met" if aim["met"] else "**not met**"
        rounds, wanted = aim.get("rounds", 0), result["environment"].get("rounds", 0)
        met += f", from {rounds} of {wanted} rounds" if 0 < rounds < wanted else ""
        yield f"| {aim['name']} | {aim['value']:.2f} | {sign} {aim['aim']} | {met} |"


def _medians(result: dict[str, Any]) -> dict[str, float]:
    return {row["figure"]: row["median"] for row in result["rows"]}


def _fastest_first(medians: dict[str, float], figure: str) -> list[str]:
    """The contenders that have the figure."""
    ending = f", {figure}"
    return sorted(
        (name.removesuffix(ending) for name in medians if name.endswith(ending) and " / " not in name),
        key=lambda name: -medians[f"{name}{ending}"],
    )


def _cell(median: float | None, figure: str) -> str:
    if median is None:
        return ""
    return f"{median / 1000:.1f}" if figure.endswith("p99") else f"{median:,.0f}"


def draw_peers(path: Path) -> None:
    """Bars of throughput, a panel for each load."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "understudy", "font.size": 8}  # the same figures give the same file
    medians = _medians(json.loads((RESULTS / "peers.json").read_text()))
    loads = {SMALL: "64 floats, JSON", IMAGE: "3×224×224 image", GRPC: "64 floats, gRPC"}
    panels = {
        title: (load, names) for load, title in loads.items() if (names := _fastest_first(medians, load))
    }
    figure = Figure(figsize=(10, 3.2), layout="constrained", facecolor="white")
    for axes, (title, (load, names)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        values = [medians[f"{name}, {load}"] for name in names]
        colors = ["#c2410c" if name == "Understudy" else "#94a3b8" for name in names]
        bars = axes.barh(names, values, color=colors)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3)
        axes.set_title(f"{title}: requests/s", loc="left", fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(values))
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False)
    figure.savefig(path, metadata={"Date": None})


# Figures by which a server under a fault is told at a glance, and how they are written.
AT_A_GLANCE = {
    "failed": "{:,.0f} failed",
    "p99 during the fault": "{:,.0f} ms",
    "goodput / capacity": "{:.0%} goodput",
    "p99 of what was admitted": "{:,.0f} ms",
}

FaultRows = dict[str, dict[str, dict[str, dict[str, Any]]]]  # fault -> server -> figure -> row


def faults_figures(result: dict[str, Any]) -> Iterator[str]:
    """Servers and faults, medians."""
    by_fault = _by_fault(result)
    servers = dict.fromkeys(server for servers in by_fault.values() for server in servers)
    yield f"| | {' | '.join(by_fault)} |"
    yield f"|---|{'---|' * len(by_fault)}"
    for server in servers:
        cells = [_glance(rows[server]) if server in rows else "" for rows in by_fault.values()]
        yield f"| {server} | {' | '.join(cells)} |"
    yield ""
    yield from _aims(result, "Understudy, medians unless they say otherwise")
    yield ""
    yield "Failed: of 10,000. Milliseconds: p99 during the fault, of what was admitted in the overload."
    yield "[All figures](docs/reference/faults.md), with least and most."
    yield f"By `make bench-faults`. {_machine(result['environment'])}"


def _glance(figures: dict[str, dict[str, Any]]) -> str:
    return ", ".join(
        form.format(figures[name]["median"]) for name, form in AT_A_GLANCE.items() if name in figures
    )


def faults_page(result: dict[str, Any]) -> Iterator[str]:
    """Every figure of every server under every fault."""
    environment = result["environment"]
    yield "# Servers while they are broken"
    yield ""
    yield "What the clients of a server with two replicas see of each fault, by `make bench-faults`"
    yield "(`benchmarks/faults`). A request has failed unless it was answered right within 250 ms of when it"
    yield "was due. One that is never answered right counts in a p99 as the 5 s for which its client waits."
    yield f"Open loop, {environment['rate_per_s']:.0f} requests/s, {environment['fault_s']:g} s of a fault."
    yield _machine(environment)
    for fault, servers in _by_fault(result).items():
        yield from ("", f"## {fault}", "")
        yield "| server | figure | unit | n | min | median | max |"
        yield "|---|---|---|---:|---:|---:|---:|"
        for server, figures in servers.items():
            for figure, row in figures.items():
                values = " | ".join(f"{row[name]:,.1f}" for name in ("min", "median", "max"))
                yield f"| {server} | {figure} | {row['unit']} | {row['n']} | {values} |"
    yield ""
    for what, why in environment["missing"].items():
        yield f"Not measured: {what} ({why})."
    for what, count in environment["not_recovered"].items():
        yield f"Not whole again within 30 s, so started afresh: {what}, {count} times."


def _by_fault(result: dict[str, Any]) -> FaultRows:
    found: FaultRows = {}
    for row in result["rows"]:
        server, _, rest = row["figure"].partition(", ")
        fault, _, figure = rest.partition(": ")
        found.setdefault(fault, {}).setdefault(server, {})[figure] = row
    return found


def _machine(environment: dict[str, Any]) -> str:
    machine = environment["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {environment['date']}."


# Settings


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "One TOML file describes a cluster, and one an app. A name ends in its unit. An unknown name is",
        "refused, with the nearest known one. Whatever isn't set has the default given here.",
        "",
        "## The cluster file",
        "",
    ]
    lines += _tables(ClusterConfig, "")
    lines += ["## The file of API keys", ""]
    lines += _tables(KeyFile, "")
    lines += ["## The manifest of an app", ""]
    lines += _tables(AppManifest, "")
    return "\n".join(lines)


def _tables(type_: type[msgspec.Struct], path: str) -> Iterator[str]:
    """One table for `type_`, then one for each table inside it. `path` as it is written in TOML."""
    title = f"`{path}`" if path else "Top level"
    yield f"### {title}"
    yield ""
    if about := _about(type_):
        yield from (about, "")
    yield "| setting | value | default | meaning |"
    yield "|---|---|---|---|"
    comments = _comments(type_)
    inner: list[tuple[type[msgspec.Struct], str]] = []
    for field in msgspec.structs.fields(type_):
        found = list(_tables_in(field.type))
        for table, is_list in found:
            name = f"{path.strip('[]')}.{field.name}".lstrip(".")
            inner.append((table, f"[[{name}]]" if is_list else f"[{name}]"))
        if not found:
            default = "required" if field.required else f"`{_toml(_default(field))}`"
            words = _words(msgspec.inspect.type_info(field.type))
            yield f"| `{field.name}` | {words} | {default} | {comments.get(field.name, '')} |"
    yield ""
    for table, name in inner:
        yield from _tables(table, name)


def _about(type_: type) -> str:
    text = type_.__doc__ or ""
    return "" if text.startswith(type_.__name__ + "(") else text.strip()


def _tables_in(type_: Any) -> Iterator[tuple[type[msgspec.Struct], bool]]:
    """The structs that a field may hold, and whether it holds a list of them."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        yield type_, False
        return
    for inner in get_args(type_):
        for table, is_list in _tables_in(inner):
            yield table, is_list or get_origin(type_) is tuple


def _words(info: msgspec.inspect.Type) -> str:
    """What may be written, in words."""
    match info:
        case msgspec.inspect.BoolType():
            return "`true` or `false`"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            word = "whole number" if isinstance(info, msgspec.inspect.IntType) else "number"
            limits = ((">", info.gt), ("≥", info.ge), ("<", info.lt), ("≤", info.le))
            bounds = [
                f"{sign} {limit:g}" for sign, limit in limits if limit is not None and limit < BOUND_MAX
            ]
            return " ".join([word, ", ".join(bounds)]).strip()
        case msgspec.inspect.StrType(pattern=pattern):
            return "name" if pattern else "text"
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in sorted(map(str, values)))
        case msgspec.inspect.EnumType(cls=cls):
            return " or ".join(f"`{member.value}`" for member in cls)
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"list of {_words(item)}"
        case msgspec.inspect.UnionType(types=types):
            return _words(next(t for t in types if not isinstance(t, msgspec.inspect.NoneType)))
        case msgspec.inspect.DictType():
            return "table"
    raise TypeError(f"no words for {info}")


def _default(field: msgspec.structs.FieldInfo) -> Any:
    made = field.default_factory is not msgspec.NODEFAULT
    return field.default_factory() if made else field.default


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return f'"{value.value}"'
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{}"
    return f"{value:_}" if isinstance(value, int) else f"{value:g}"


def _comments(type_: type) -> dict[str, str]:
    """Field -> the comment at the end of its line in the source, of its ancestors' fields too."""
    found: dict[str, str] = {}
    for class_ in type_.__mro__[::-1]:
        source = getattr(sys.modules[class_.__module__], "__file__", None)
        if source and issubclass(class_, msgspec.Struct) and class_ is not msgspec.Struct:
            found |= _comments_in(Path(source)).get(class_.__name__, {})
    return found


@cache
def _comments_in(path: Path) -> dict[str, dict[str, str]]:
    """Class -> field -> comment."""
    source = path.read_text()
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        node.name: {
            field.target.id: by_line.get(field.lineno, "")
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


# Events, errors, lifecycles


def events_page() -> str:
    lines = [
        "# Events",
        "",
        "What happened, as entries of the log and, where an operator should know, of the cluster's event log",
        "(`understudy events`).",
        "",
        "| event | meaning |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {registry.EVENTS[name]} |" for name in sorted(registry.EVENTS)]
    return "\n".join(lines)


def errors_page() -> str:
    lines = [
        "# Errors",
        "",
        "Codes are stable, messages may change. Retryable: the same request may succeed elsewhere or later.",
        "",
        "| code | retryable | who has to act | HTTP | gRPC | exit status of a command |",
        "|---|---|---|---|---|---|",
    ]
    for code, (retryable, origin) in errors.TRAITS.items():
        error = errors.UnderstudyError(code, "")
        statuses = (
            f"{answers.status_of(error)} | {grpc_answers.status_of(error).name} | {exit_of(code).value}"
        )
        lines.append(f"| `{code.value}` | {'yes' if retryable else 'no'} | {origin.value} | {statuses} |")
    return "\n".join(lines)


def lifecycles_page() -> str:
    lines = [
        "# Lifecycles",
        "",
        "Drawn from the tables by which the processes move.",
        "",
    ]
    for about, table in LIFECYCLES.items():
        lines += [f"## {about}", "", *_diagram(table), "", *_transitions(table), ""]
    return "\n".join(lines)


Lifecycle = Mapping[tuple[StrEnum, str], StrEnum]
LIFECYCLES: dict[str, Lifecycle] = {
    "A replica, as its agent sees it": lifecycle.REPLICA,
    "A replica, as a gateway sees it between two reports of its agent": lifecycles.SEEN,
    "A node, as the controller sees it": lifecycle.NODE,
    "A worker process": lifecycle.WORKER,
    "A variant that crashes again and again, as the controller sees it": lifecycle.CASE,
    "A deployment": lifecycle.DEPLOYMENT,
}


def _diagram(table: Lifecycle) -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {_node_of(next(iter(table))[0])}"
    for (state, event), after in table.items():
        yield f"    {_node_of(state)} --> {_node_of(after)}: {event}"
    yield "```"


def _node_of(state: str) -> str:
    """As Mermaid takes it: without spaces."""
    return state.replace(" ", "_")


def _transitions(table: Lifecycle) -> Iterator[str]:
    yield "| in state | on | goes to |"
    yield "|---|---|---|"
    for (state, event), after in table.items():
        yield f"| {state} | {event} | {after} |"


def main() -> None:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text)
    if (RESULTS / "peers.json").exists():
        draw_peers(REFERENCE / "peers.svg")
    if (results := RESULTS / "evaluation.json").exists():
        plots.draw(json.loads(results.read_text()), REFERENCE)


if __name__ == "__main__":
    main()
