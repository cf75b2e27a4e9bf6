"""The control API over HTTP, for operators and the command line: JSON in and out, OpenAPI at /schema.

Errors are `{"error": …, "code": …}`; the status follows from the code by one table.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import structlog
import uvicorn
from litestar import Litestar, MediaType, Request, Response, Router, delete, get, head, post, put
from litestar.exceptions import HTTPException, SerializationException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta

from understudy.adapters.audit import AuditLog, AuditRecord
from understudy.config import explain
from understudy.controller.deployments import Deployment
from understudy.controller.doorkeeper import Doorkeeper
from understudy.controller.questions import Questions
from understudy.controller.recovery import informed
from understudy.controller.requests import AppRequest
from understudy.controller.shell import Controller
from understudy.controller.status import ClusterStatus, StoreStatus
from understudy.controller.uploads import Uploads
from understudy.core.planning.plan import overhead
from understudy.core.questions.holdings import Holdings
from understudy.core.questions.records import Audit, Held, Question, QuestionAnswered
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.records import Event, Plan
from understudy.wire.statuses import CLUSTER_HEADER, STATUSES

REQUEST_BYTES_MAX = 16 * 1024 * 1024  # of everything but artifacts
EVENTS_PER_ANSWER_MAX = 1000
SERIAL_MAX = 2**63 - 1  # of an event; stores know no larger number
PROBLEMS_MAX = 100
PROBLEM_LENGTH_MAX = 4000
STOP_TIMEOUT_S = 2
ASKING_PATH = "/plan/what-if"

log = structlog.get_logger()


class Problems(msgspec.Struct):
    """Each as a sentence. They replace those that were told before."""

    problems: Annotated[
        tuple[Annotated[str, Meta(max_length=PROBLEM_LENGTH_MAX)], ...], Meta(max_length=PROBLEMS_MAX)
    ]


class Health(msgspec.Struct):
    live: bool
    pid: int
    store: StoreStatus


class PlanAnswer(Plan, frozen=True):
    """The plan in force; revision 0 stands for none yet."""

    memory_overhead: float = 0.0  # of standbys and contingencies, as a fraction of the primaries' memory
    held: tuple[Held, ...] = ()  # by node and device


class LoggedEvent(msgspec.Struct):
    serial: int
    kind: str
    at_unix_ms: int
    source: str
    message: str
    app: str
    node: str
    replica: str
    data: dict[str, Any]


class EventsAnswer(msgspec.Struct):
    """Oldest first. `unwritten` ones (serial 0) wait in memory until the store is back."""

    events: list[LoggedEvent]
    unwritten: list[LoggedEvent]


class ArtifactAnswer(msgspec.Struct):
    digest: str
    size_bytes: int


class ApiServer:
    """uvicorn in our own loop: no signal handlers, no access log."""

    def __init__(self, app: Doorkeeper, listening: socket.socket) -> None:
        self._listening = listening
        self._ended = asyncio.Event()
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_TIMEOUT_S,
            )
        )

    async def run(self) -> None:
        """Serve until `stop`."""
        try:
            await self._server.serve(sockets=[self._listening])
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Answer what was asked, then close. Takes STOP_TIMEOUT_S at most, and a little."""
        self._server.should_exit = True
        await self._ended.wait()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they belong to the process


def build_api(controller: Controller, config: ClusterConfig, audit: AuditLog) -> Litestar:
    uploads = Uploads(controller.artifacts, config.controller)

    async def refuse_misdirected(request: Request[Any, Any, Any]) -> Response[Any] | None:
        meant = request.headers.get(CLUSTER_HEADER)
        if meant in (None, config.name):
            return None
        what = f"this is cluster {config.name!r}, not {meant!r}"
        answer = _answer(Code.CONFLICT, what, STATUSES[Code.CONFLICT].http)
        answer.headers[CLUSTER_HEADER] = config.name
        return answer

    return Litestar(
        [
            Router(
                "/v1",
                route_handlers=[
                    *_artifact_routes(uploads),
                    *_app_routes(controller),
                    *_operator_routes(controller),
                    *_reading_routes(controller),
                    *_asking_routes(controller.questions),
                    _audit_route(audit),
                ],
            )
        ],
        before_request=refuse_misdirected,
        exception_handlers={
            UnderstudyError: _on_expected,
            HTTPException: _on_http,
            UnicodeDecodeError: _on_unreadable,  # which the framework lets through
            RecursionError: _on_unreadable,
            Exception: _on_unexpected,
        },
        openapi_config=OpenAPIConfig(
            title="Understudy control API",
            version="1",
            path="/schema",
            render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
        ),
        logging_config=None,
        request_max_body_size=REQUEST_BYTES_MAX,
    )


def _artifact_routes(uploads: Uploads) -> list[Any]:
    @put("/artifacts/{digest:str}", request_max_body_size=None, summary="Upload a file by its SHA-256")
    async def put_artifact(digest: FromPath[str], request: Request[Any, Any, Any]) -> ArtifactAnswer:
        declared = request.headers.get("content-length")
        size_bytes = await uploads.receive(digest, request.stream(), int(declared) if declared else None)
        return ArtifactAnswer(digest, size_bytes)

    put_artifact.status_code = HTTPStatus.CREATED

    @head("/artifacts/{digest:str}", summary="Whether a file is there")
    async def head_artifact(digest: FromPath[str]) -> None:
        uploads.check_present(digest)

    return [put_artifact, head_artifact]


def _app_routes(controller: Controller) -> list[Any]:
    deployments = controller.deployments

    @post("/apps", status_code=HTTPStatus.ACCEPTED, summary="Deploy an app")
    async def deploy(
        data: JSONBody[AppRequest], manifest: FromQuery[str] = "", if_changed: FromQuery[bool] = False
    ) -> Deployment:
        await informed(controller.machine)
        return deployments.start(data, manifest, if_changed=if_changed)

    @get("/deployments/{id:str}", summary="How far a deployment is")
    async def deployment(id: FromPath[str]) -> Deployment:
        return deployments.get(id)

    @delete("/apps/{app:str}", status_code=HTTPStatus.OK, summary="Remove an app and all its versions")
    async def remove(app: FromPath[str]) -> dict[str, str]:
        await controller.remove(app)
        return {"removed": app}

    @delete(
        "/quarantine/{app:str}/{variant:str}", status_code=HTTPStatus.OK, summary="Let a variant run again"
    )
    async def clear_quarantine(app: FromPath[str], variant: FromPath[str]) -> dict[str, str]:
        controller.clear_quarantine(app, variant)
        return {"app": app, "variant": variant}

    return [deploy, deployment, remove, clear_quarantine]


def _operator_routes(controller: Controller) -> list[Any]:
    @post("/nodes/{node:str}/drain", status_code=HTTPStatus.OK, summary="Move everything off a node")
    async def drain(node: FromPath[str]) -> dict[str, str]:
        controller.drain(node, drained=True)
        return {"node": node, "state": controller.machine.nodes.by_name[node].state}

    @post("/nodes/{node:str}/undrain", status_code=HTTPStatus.OK, summary="Let a node take replicas again")
    async def undrain(node: FromPath[str]) -> dict[str, str]:
        controller.drain(node, drained=False)
        return {"node": node, "state": controller.machine.nodes.by_name[node].state}

    @put("/problems", summary="What a supervisor of this cluster could not do, for the status to show")
    async def problems(data: JSONBody[Problems]) -> Problems:
        controller.problems = data.problems
        return data

    return [drain, undrain, problems]


def _reading_routes(controller: Controller) -> list[Any]:
    @get("/status", summary="The cluster on one page")
    async def status() -> ClusterStatus:
        return controller.status()

    @get("/plan", summary="What is where, what protects it, and the proof")
    async def plan() -> PlanAnswer:
        stored = controller.machine.plan
        if stored is None:
            return PlanAnswer(revision=0)
        releases = controller.machine.catalog.releases
        versions = tuple(releases[key].app for key in stored.facts.apps if key in releases)
        facts = msgspec.structs.replace(controller.machine.planning.input(), apps=versions)
        return PlanAnswer(
            **msgspec.structs.asdict(stored.plan),
            memory_overhead=overhead(stored.plan, versions),
            held=Holdings(stored.plan, facts).listed(),
        )

    @get("/events", summary="What happened, oldest first")
    async def events(
        limit: Annotated[int, QueryParameter(ge=1, le=EVENTS_PER_ANSWER_MAX)] = 100,
        after: Annotated[int | None, QueryParameter(ge=0, le=SERIAL_MAX)] = None,
        app: FromQuery[str] = "",
        node: FromQuery[str] = "",
    ) -> EventsAnswer:
        unwritten = [_logged(0, event) for event in controller.bookkeeper.unwritten_events]
        try:
            found = await controller.store.events(after, limit, app=app, node=node)
        except UnderstudyError:
            if not unwritten:
                raise
            found = []
        return EventsAnswer([_logged(*stored) for stored in found], unwritten)

    @get("/health", summary="Whether this process works")
    async def health() -> Health:
        return Health(True, os.getpid(), controller.bookkeeper.status)

    return [status, plan, events, health]


def _asking_routes(questions: Questions) -> list[Any]:
    @post(ASKING_PATH, status_code=HTTPStatus.OK, summary="What a loss or another node would do, and why")
    async def ask(data: JSONBody[Question]) -> QuestionAnswered:
        return await questions.ask(data)

    @get("/audit/spof", summary="Single points of failure, with remedies")
    async def spof() -> Audit:
        return await questions.audit()

    return [ask, spof]


def _audit_route(audit: AuditLog) -> Any:
    @get("/audit/log", summary="Who did what, and who was refused, oldest first")
    async def records(
        limit: Annotated[int, QueryParameter(ge=1, le=EVENTS_PER_ANSWER_MAX)] = 100,
    ) -> list[AuditRecord]:
        return await asyncio.to_thread(audit.newest, limit)

    return records


def _logged(serial: int, event: Event) -> LoggedEvent:
    return LoggedEvent(
        serial,
        event.kind,
        event.at_unix_ms,
        event.source,
        event.message,
        event.app,
        event.node,
        event.replica,
        event.data,
    )


# Errors


def _answer(code: Code, message: str, status: int) -> Response[Any]:
    return Response({"error": message, "code": code.value}, status_code=status, media_type=MediaType.JSON)


def _on_expected(_: Request[Any, Any, Any], error: UnderstudyError) -> Response[Any]:
    return _answer(error.code, str(error), STATUSES[error.code].http)


def _on_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """What the framework refused: an unknown path, a method, a document that isn't what it should be."""
    code = Code.NOT_FOUND if error.status_code == HTTPStatus.NOT_FOUND else Code.INVALID_ARGUMENT
    if isinstance(error.extra, list):
        # The body as a whole goes by the name of the handler's parameter.
        fields = [(str(each["key"]).removeprefix("data"), each["message"]) for each in error.extra]
        type_ = Question if request.url.path.endswith(ASKING_PATH) else AppRequest
        problems = [explain(f"{message} - at `$.{field}`", type_) for field, message in fields]
        return _answer(code, "; ".join(problems), error.status_code)
    if isinstance(error.__cause__, SerializationException):
        return _answer(code, f"the body is not valid JSON: {error.detail}", error.status_code)
    return _answer(code, error.detail, error.status_code)


def _on_unreadable(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    what = "nested too deep" if isinstance(error, RecursionError) else "not UTF-8 text"
    return _answer(Code.INVALID_ARGUMENT, f"the body is {what}", HTTPStatus.BAD_REQUEST)


def _on_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log.error("request.failed", method=request.method, path=request.url.path, exc_info=error)
    message = f"{type(error).__name__}; the controller's log has the details"
    return _answer(Code.INTERNAL, message, HTTPStatus.INTERNAL_SERVER_ERROR)
