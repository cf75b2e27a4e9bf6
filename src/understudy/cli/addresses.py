"""Which servers a command asks: by its options, by the cluster file, or at the usual addresses."""

from __future__ import annotations

from pathlib import Path

from understudy.adapters.control import OPEN_ACCESS, Access, Servers, cluster_controllers, cluster_gateways
from understudy.config import load_cluster
from understudy.core.views import from_controller
from understudy.wire.errors import UnderstudyError

CONTROL_URL_DEFAULT = "http://127.0.0.1:8090"
GATEWAY_URL_DEFAULT = "http://127.0.0.1:8080"
CONNECTED_TIMEOUT_S = 2.0


def controllers(url: str | None, cluster: Path | None) -> Servers:
    """The control API: --url (or UNDERSTUDY_URL), else the addresses in --cluster, else the default."""
    if url:
        return Servers([url], "controller", "given by --url or UNDERSTUDY_URL")
    if cluster:
        return cluster_controllers(load_cluster(cluster), source=f"from {cluster}")
    return Servers([CONTROL_URL_DEFAULT], "controller", "the default address")


def gateways(
    url: str | None, cluster: Path | None, access: Access = OPEN_ACCESS, control: str | None = None
) -> Servers:
    """Gateways: --gateway (or UNDERSTUDY_GATEWAY), else the addresses in --cluster, else those that are
    connected to the controller at `control`, else the default."""
    if url:
        return Servers([url], "gateway", "given by --gateway or UNDERSTUDY_GATEWAY", access=access)
    if cluster:
        return cluster_gateways(load_cluster(cluster), source=f"from {cluster}", access=access)
    if control and (connected := _connected_to(control)):
        return Servers(connected, "gateway", f"connected to the controller at {control}", access=access)
    return Servers([GATEWAY_URL_DEFAULT], "gateway", "the default address", access=access)


def _connected_to(control: str) -> list[str]:
    """None where no controller answers with a status: gateways serve on without it."""
    server = controllers(control, None)
    try:
        document = server.ask("GET", "/v1/status", timeout_s=CONNECTED_TIMEOUT_S)
        found = from_controller(document, control).gateways
    except UnderstudyError:
        return []
    return sorted({gateway.http_address for gateway in found if gateway.connected and gateway.http_address})
