"""Imports point down only, and the decisions know nothing of the world."""

from __future__ import annotations

from typing import Any

LAYERS = {
    "wire": 0,
    "config": 0,
    "failures": 0,
    "settings": 0,
    "invariants": 0,
    "registry": 0,
    "core": 1,
    "adapters": 2,
    "gateway": 3,
    "worker": 3,
    "agent": 3,
    "controller": 3,
    "sim": 3,
    "chaos": 3,
    "local": 3,
    "demo": 4,
    "client": 4,
    "cli": 5,
    "__main__": 5,
}
# Roles talk in frames, not in calls. The agent forks workers, so it knows their entry point.
SHELLS = {package for package, layer in LAYERS.items() if layer == 3}
SHELLS_MAY = {("agent", "worker"), ("chaos", "sim")}

WORLD = {
    "asyncio", "datetime", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "selectors",
    "shutil", "signal", "socket", "structlog", "subprocess", "tempfile", "threading", "time", "uuid",
    "uvloop",
}  # fmt: skip

# library -> the only places that may import it: it is slow to start, large, or an option
CONFINED = {
    "numpy": (
        "understudy.worker",
        "understudy.wire.tensors",
        "understudy.demo",
        "understudy.client",
        "understudy.core.planning",
    ),
    "highspy": ("understudy.core",),
    "litestar": ("understudy.controller",),
    "uvicorn": ("understudy.controller",),
    "onnxruntime": ("understudy.worker", "understudy.agent.zygote", "understudy.demo"),
    "onnx": ("understudy.worker", "understudy.demo"),
    "skl2onnx": ("understudy.demo",),
    "sklearn": ("understudy.demo",),
    "typer": ("understudy.cli",),
    "rich": ("understudy.cli", "understudy.demo"),
    "google": ("understudy.gateway.grpc", "understudy.wire.inference", "understudy.worker.protobuf"),
    "grpc": ("understudy.gateway.grpc",),
    "grpc_health": ("understudy.gateway.grpc_health",),
    "grpc_reflection": ("understudy.gateway.grpc_health",),
    "httptools": ("understudy.gateway", "understudy.demo.load", "understudy.client.connection"),
    "jwt": ("understudy.gateway.tokens",),
    "cryptography": ("understudy.gateway.tokens",),
}


def test_imports_point_down(src: list[Any]) -> None:
    wrong = []
    for module in src:
        if module.name == "understudy":
            continue
        package = module.name.split(".")[1]
        for line, name in module.imports():
            if not name.startswith("understudy."):
                continue
            other = name.split(".")[1]
            if other not in LAYERS:  # a name of the top package itself, such as __version__
                continue
            siblings = other != package and {package, other} <= SHELLS
            if LAYERS[other] > LAYERS[package] or (siblings and (package, other) not in SHELLS_MAY):
                wrong.append(f"{module.path}:{line}: {package} may not import {name}")
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_layer(src: list[Any]) -> None:
    packages = {module.name.split(".")[1] for module in src if "." in module.name}
    assert packages <= LAYERS.keys(), f"name the layer of {packages - LAYERS.keys()}"


def test_decisions_know_nothing_of_the_world(src: list[Any]) -> None:
    wrong = [
        f"{module.path}:{line}: {name}"
        for module in src
        if module.name.startswith(("understudy.core", "understudy.wire"))
        for line, name in module.imports()
        if name.split(".")[0] in WORLD
    ]
    assert not wrong, "\n".join(wrong)


def test_libraries_stay_where_they_belong(src: list[Any]) -> None:
    wrong = [
        f"{module.path}:{line}: {name} is for {', '.join(CONFINED[name.split('.')[0]])} only"
        for module in src
        for line, name in module.imports()
        if not module.name.startswith(CONFINED.get(name.split(".")[0], ""))
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute(src: list[Any], around: list[Any]) -> None:
    wrong = [
        f"{module.path}:{line}"
        for module in src + around
        for line, name in module.imports()
        if "None." in name
    ]
    assert not wrong, "\n".join(wrong)
