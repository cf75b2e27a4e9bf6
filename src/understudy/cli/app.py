"""The `understudy` command: what can be asked, and with which options.

Lives here: names, options and help of the commands. Does not live here: what they do; each one's module is
imported when it runs, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from understudy.adapters.inherited import close_to_others, settle_inherited
from understudy.cli.exits import Exit, of_environment
from understudy.cli.output import Output
from understudy.wire.errors import Code, CommandError, UnderstudyError

if TYPE_CHECKING:
    from understudy.adapters.control import Servers
    from understudy.cli.roles import RoleName

app = typer.Typer(
    name="understudy",
    help="A model server that keeps answering: every model has an understudy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 ok, 1 failed, 2 wrong usage or configuration, 3 not found, 4 unavailable, "
    "5 timed out, 6 degraded (status --check) or something found (audit), 130 interrupted.",
)
quarantine = typer.Typer(help="Variants that are kept off all nodes because they kept crashing.")
app.add_typer(quarantine, name="quarantine", no_args_is_help=True, rich_help_panel="Operate")
audit = typer.Typer(help="Look for what shouldn't be so, and say how to mend it.")
app.add_typer(audit, name="audit", no_args_is_help=True, rich_help_panel="Look")


def _show_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """A model server that keeps answering: every model has an understudy."""


Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and nothing else.")]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="UNDERSTUDY_URL", help="The control API (default http://127.0.0.1:8090)."),
]
Gateway = Annotated[
    str | None,
    typer.Option("--gateway", envvar="UNDERSTUDY_GATEWAY", help="A gateway (default http://127.0.0.1:8080)."),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="A gateway's API key or token (else UNDERSTUDY_API_KEY in the environment).",
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="UNDERSTUDY_CA",
        metavar="FILE",
        help="Certificates (PEM) of those who may sign a gateway's.",
    ),
]
Newest = Annotated[int, typer.Option(help="How many of the newest.", min=1, max=1000)]
ClusterFile = Annotated[
    Path | None, typer.Option("--cluster", metavar="FILE", help="Take the addresses from CLUSTER.toml.")
]
RoleCluster = Annotated[Path, typer.Option("--cluster", metavar="FILE", help="CLUSTER.toml.")]
RoleArgument = Annotated[str, typer.Argument(metavar="NAME", help="Its name in the cluster file.")]
Parent = Annotated[int | None, typer.Option("--parent", hidden=True)]

RUN, OPERATE, LOOK = "Run", "Operate", "Look"


def main() -> None:
    """Entry point. Ends the process with a status of `exits.Exit`."""
    settle_inherited()
    close_to_others()
    try:
        app()
    except UnderstudyError as error:
        # Commands report their own failures; this is for those that have no --json.
        sys.exit(Output().error(error))
    except OSError as error:
        sys.exit(Output().error(of_environment(error)))
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def _attempt(output: Output, command: Callable[[], bool | None]) -> None:
    """Run a command; False or an error become the exit status that goes with them."""
    try:
        done = command()
    except UnderstudyError as error:
        raise typer.Exit(output.error(error)) from error
    except OSError as error:
        raise typer.Exit(output.error(of_environment(error))) from error
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            output.note(note)
        raise typer.Exit(Exit.INTERRUPTED) from interrupt
    if done is False:
        raise typer.Exit(Exit.FAILED)


def _controllers(url: str | None, cluster: Path | None) -> Servers:
    from understudy.cli.addresses import controllers

    return controllers(url, cluster)


def _gateways(
    gateway: str | None, cluster: Path | None, api_key_file: Path | None, ca: Path | None, url: str | None
) -> Servers:
    from understudy.adapters.control import gateway_access
    from understudy.cli.addresses import gateways

    return gateways(gateway, cluster, gateway_access(api_key_file, ca), url)


@app.command(rich_help_panel=RUN)
def up(
    config: Annotated[
        Path, typer.Argument(metavar="CLUSTER.toml", help="The cluster to run, or its directory.")
    ],
    no_restart: Annotated[bool, typer.Option("--no-restart", help="Leave roles that die dead.")] = False,
    json: Json = False,
) -> None:
    """Run a whole cluster on this machine, as real processes, until Ctrl-C."""
    from understudy.cli.up import run_up

    output = Output(as_json=json)
    file = config / "CLUSTER.toml" if config.is_dir() else config
    _attempt(output, lambda: run_up(file, output, restart=not no_restart))


@app.command(rich_help_panel=RUN)
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report goes.")] = Path(
        "build/demo"
    ),
    json: Json = False,
) -> None:
    """Real models, real faults: kill workers, nodes and the controller, and count the answers."""
    output = Output(as_json=json)
    _attempt(output, lambda: _demo(out, output))


@app.command(rich_help_panel=RUN)
def simulate(
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed, or the first of many.")] = 1,
    count: Annotated[int, typer.Option("--count", min=1, help="How many seeds; one shows its timeline.")] = 1,
    only: Annotated[str, typer.Option("--only", help="Parts to keep of one run, as in f3,loss,n2.")] = "",
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Leave out of a failing run what doesn't matter.")
    ] = False,
    json: Json = False,
) -> None:
    """The cluster's own decisions under virtual time and faults drawn from a seed, which replays a run."""
    from understudy.cli.simulate import simulate as run

    output = Output(as_json=json)
    _attempt(output, lambda: run(seed, count, [p for p in only.split(",") if p], shrink, output))


def _demo(out: Path, output: Output) -> bool:
    try:
        from understudy.cli.demo import run_demo
    except ModuleNotFoundError as error:
        hint = "install it with: pip install '/path/to/understudy[demo]'"
        raise CommandError(Code.CONFIG, f"the demo needs {error.name}", hint) from error
    return run_demo(out, output)


@app.command(rich_help_panel=RUN)
def controller(name: RoleArgument, cluster: RoleCluster, parent: Parent = None) -> None:
    """Run one controller in the foreground."""
    _role("controller", name, cluster, parent)


@app.command(rich_help_panel=RUN)
def gateway(name: RoleArgument, cluster: RoleCluster, parent: Parent = None) -> None:
    """Run one gateway in the foreground."""
    _role("gateway", name, cluster, parent)


@app.command(rich_help_panel=RUN)
def agent(name: RoleArgument, cluster: RoleCluster, parent: Parent = None) -> None:
    """Run the agent of one node in the foreground."""
    _role("agent", name, cluster, parent)


def _role(role: RoleName, name: str, cluster: Path, parent: int | None) -> None:
    from understudy.cli.roles import run_role

    _attempt(Output(), lambda: run_role(role, name, cluster, parent))


Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="A manifest, a directory of manifests, or models without one."),
]
AppName = Annotated[str, typer.Option("--name", metavar="APP", help="Of models without a manifest.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME:DATATYPE:SHAPE", help="What a Python model takes: x:FP32:-1,4."),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME:DATATYPE:SHAPE", help="What it gives; -1 is any length."),
]
Save = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Keep the manifest that was written for models.")
]


@app.command(rich_help_panel=OPERATE)
def deploy(
    paths: Paths,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once it is accepted.")] = False,
    timeout: Annotated[
        float, typer.Option(help="How long to wait for readiness, in seconds.", min=0)
    ] = 300.0,
    name: AppName = "",
    input: Inputs = None,
    output: Outputs = None,
    save: Save = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of a model's code that failed.")
    ] = False,
    url: Url = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Upload an app's variants, measure them, place them, and wait until it answers.

    Of models alone (.onnx, .py, a directory with model.py) it writes the manifest itself and shows it.
    """
    from understudy.cli.bare import Wishes, run_deploy_any

    out = Output(as_json=json)
    wishes = Wishes(name, tuple(input or ()), tuple(output or ()), save)
    wait_s = None if no_wait else timeout
    _attempt(
        out, lambda: run_deploy_any(_controllers(url, cluster), paths, wishes, out, wait_s, verbose=verbose)
    )


@app.command(rich_help_panel=LOOK)
def check(
    paths: Paths,
    name: AppName = "",
    input: Inputs = None,
    output: Outputs = None,
    json: Json = False,
) -> None:
    """Check manifests, models and cluster files without a cluster. Nothing is sent or changed."""
    from understudy.cli.bare import Wishes
    from understudy.cli.check import run_check

    out = Output(as_json=json)
    wishes = Wishes(name, tuple(input or ()), tuple(output or ()))
    _attempt(out, lambda: run_check(paths, wishes, out))


@app.command(rich_help_panel=OPERATE)
def token(url: Url = None, cluster: ClusterFile = None, json: Json = False) -> None:
    """Show the operator's token, for other programs that ask the control API or a gateway's /understudy/."""
    from understudy.cli.operate import run_token

    output = Output(as_json=json)
    _attempt(output, lambda: run_token(_controllers(url, cluster), output))


@app.command(rich_help_panel=OPERATE)
def remove(
    name: Annotated[str, typer.Argument(metavar="APP")],
    url: Url = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Stop serving an app and forget its versions."""
    from understudy.cli.operate import run_remove

    output = Output(as_json=json)
    _attempt(output, lambda: run_remove(_controllers(url, cluster), name, output))


@app.command(rich_help_panel=OPERATE)
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE")],
    url: Url = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Move everything off a node, without a lost request."""
    from understudy.cli.operate import run_drain

    output = Output(as_json=json)
    _attempt(output, lambda: run_drain(_controllers(url, cluster), node, output, drained=True))


@app.command(rich_help_panel=OPERATE)
def undrain(
    node: Annotated[str, typer.Argument(metavar="NODE")],
    url: Url = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Give a drained node work again."""
    from understudy.cli.operate import run_drain

    output = Output(as_json=json)
    _attempt(output, lambda: run_drain(_controllers(url, cluster), node, output, drained=False))


@quarantine.command("list")
def quarantine_list(url: Url = None, cluster: ClusterFile = None, json: Json = False) -> None:
    """Show the variants in quarantine."""
    from understudy.cli.operate import run_quarantine_list

    output = Output(as_json=json)
    _attempt(output, lambda: run_quarantine_list(_controllers(url, cluster), output))


@quarantine.command("clear")
def quarantine_clear(
    name: Annotated[str, typer.Argument(metavar="APP")],
    variant: Annotated[str, typer.Argument(metavar="VARIANT")],
    url: Url = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Let a variant run again."""
    from understudy.cli.operate import run_quarantine_clear

    output = Output(as_json=json)
    _attempt(output, lambda: run_quarantine_clear(_controllers(url, cluster), name, variant, output))


@app.command(rich_help_panel=LOOK)
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Exit with 6 unless every app is served in full and its users get answers."
        ),
    ] = False,
    url: Url = None,
    gateway: Gateway = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Show apps, who serves them, how they are protected, and the nodes."""
    from understudy.adapters.control import gateway_access
    from understudy.cli.addresses import gateways
    from understudy.cli.status import run_status, run_watch

    output = Output(as_json=json)

    def show() -> None:
        access = gateway_access(api_key_file, ca)
        control, fallback = _controllers(url, cluster), gateways(gateway, cluster, access)
        if watch:
            run_watch(control, fallback, output)
        elif not run_status(control, fallback, output) and check:
            raise typer.Exit(Exit.UNMET)

    _attempt(output, show)


@app.command(rich_help_panel=LOOK)
def plan(
    fail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE|SITE|any-2", help="What if this is lost now? Several of these: all at once."
        ),
    ] = None,
    add_node: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME:]MEMORY_MB[:SITE]", help="What would another node change?"),
    ] = None,
    remove_node: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="What would change without this node?")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(metavar="APP", help="Why is it where it is, and what would it take to be warm?"),
    ] = None,
    url: Url = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Show what is protected, how, from which failures; or ask what if. Nothing is changed."""
    output = Output(as_json=json)

    def show() -> None:
        control = _controllers(url, cluster)
        if fail or add_node or remove_node or explain:
            from understudy.cli.questions import question, run_questions

            run_questions(control, question(fail or (), add_node or (), remove_node or (), explain), output)
        else:
            from understudy.cli.plan import run_plan

            run_plan(control, output)

    _attempt(output, show)


@audit.command("log")
def audit_log(url: Url = None, cluster: ClusterFile = None, limit: Newest = 50, json: Json = False) -> None:
    """Show who did what to the cluster, and who was refused, newest last."""
    from understudy.cli.audit import run_log

    output = Output(as_json=json)
    _attempt(output, lambda: run_log(_controllers(url, cluster), output, limit))


@audit.command("spof")
def audit_spof(url: Url = None, cluster: ClusterFile = None, json: Json = False) -> None:
    """Find single points of failure, from apps to the artifact store, each with its remedy."""
    from understudy.cli.audit import run_spof

    output = Output(as_json=json)

    def show() -> None:
        if not run_spof(_controllers(url, cluster), output):
            raise typer.Exit(Exit.UNMET)

    _attempt(output, show)


@app.command(rich_help_panel=LOOK)
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing new ones.")] = False,
    name: Annotated[str, typer.Option("--app", help="Only of this app.")] = "",
    node: Annotated[str, typer.Option(help="Only of this node.")] = "",
    limit: Newest = 50,
    url: Url = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Show what happened, oldest first."""
    from understudy.cli.events import run_events

    output = Output(as_json=json)
    _attempt(
        output,
        lambda: run_events(
            _controllers(url, cluster), output, app=name, node=node, limit=limit, follow=follow
        ),
    )


@app.command(rich_help_panel=LOOK)
def failures(
    name: Annotated[str, typer.Argument(metavar="[APP]", help="Only of this app.")] = "",
    request_id: Annotated[str, typer.Option("--id", help="Only of the request with this X-Request-Id.")] = "",
    url: Url = None,
    gateway: Gateway = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Show requests that a gateway failed lately, oldest first, with tracebacks of models."""
    from understudy.cli.failed_requests import run_failures

    output = Output(as_json=json)

    def show() -> None:
        servers = _gateways(gateway, cluster, api_key_file, ca, url)
        run_failures(servers, output, app=name, request_id=request_id)

    _attempt(output, show)


@app.command(rich_help_panel=LOOK)
def infer(
    name: Annotated[str, typer.Argument(metavar="APP")],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|JSON|-",
            help="A request of the Open Inference Protocol, or just the nested list of the only input.",
        ),
    ],
    timeout: Annotated[
        float | None, typer.Option(help="Deadline in seconds, instead of the app's own.", min=0.001)
    ] = None,
    url: Url = None,
    gateway: Gateway = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cluster: ClusterFile = None,
    json: Json = False,
) -> None:
    """Send one inference; show the answer and who gave it."""
    from understudy.cli.infer import run_infer

    output = Output(as_json=json)

    def ask() -> None:
        servers = _gateways(gateway, cluster, api_key_file, ca, url)
        run_infer(servers, name, data, output, timeout)

    _attempt(output, ask)


@app.command(rich_help_panel=LOOK)
def version(json: Json = False) -> None:
    """Show the version."""
    from understudy import __version__

    output = Output(as_json=json)
    if output.as_json:
        output.data({"version": __version__})
    else:
        output.stdout.print(f"understudy {__version__}")
