"""What each method of the protocol over gRPC answers, but for inference."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import Any

from understudy.gateway import grpc_answers as answers
from understudy.gateway import triton
from understudy.gateway.api import Api
from understudy.gateway.pages import model_metadata, server_metadata


class PlainMethods:
    """Each takes a message and gives one. Raises `UnderstudyError`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def table(self) -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], str]]]:
        """What answers each method, and the path over HTTP that permission is asked for."""
        live = answers.described("ServerLiveResponse", {"live": True})
        return {
            "ServerLive": (lambda _: live, lambda _: "/v2/health/live"),
            "ServerReady": (self._server_ready, lambda _: "/v2/health/ready"),
            "ServerMetadata": (self._server_metadata, lambda _: "/v2"),
            "ModelReady": (self._model_ready, _model_path),
            "ModelMetadata": (self._model_metadata, _model_path),
            "ModelConfig": (self._model_config, _model_path),
            "ModelStatistics": (self._model_statistics, _statistics_path),
            "RepositoryIndex": (self._repository_index, lambda _: "/v2/repository/index"),
            "RepositoryModelLoad": (self._model_load, lambda _: "/v2/repository"),
            "RepositoryModelUnload": (self._model_unload, lambda _: "/v2/repository"),
        }

    def _server_ready(self, _asked: Any) -> Any:
        return answers.described("ServerReadyResponse", {"ready": self._api.ready})

    def _server_metadata(self, _asked: Any) -> Any:
        return answers.described("ServerMetadataResponse", server_metadata())

    def _model_ready(self, asked: Any) -> Any:
        """An unknown model is not ready, and no error: clients poll this until it is there."""
        app = self._api.gateway.apps.get(asked.name)
        ready = app is not None and asked.version in ("", str(app.spec.version)) and app.fit
        return answers.described("ModelReadyResponse", {"ready": ready})

    def _model_metadata(self, asked: Any) -> Any:
        spec = self._api.app(asked.name, asked.version or None).spec
        return answers.described("ModelMetadataResponse", model_metadata(spec))

    def _model_config(self, asked: Any) -> Any:
        spec = self._api.app(asked.name, asked.version or None).spec
        return answers.described("ModelConfigResponse", {"config": triton.configuration(spec)})

    def _model_statistics(self, asked: Any) -> Any:
        apps = [self._api.app(asked.name, asked.version or None)] if asked.name else self._api.sorted_apps()
        return answers.described("ModelStatisticsResponse", triton.statistics(apps, monotonic(), time()))

    def _repository_index(self, asked: Any) -> Any:
        models = triton.index(self._api.sorted_apps(), ready_only=asked.ready)
        return answers.described("RepositoryIndexResponse", {"models": models})

    def _model_load(self, asked: Any) -> Any:
        triton.load(self._api.app(asked.model_name, None), with_parameters=bool(asked.parameters))
        return answers.described("RepositoryModelLoadResponse", {})

    def _model_unload(self, asked: Any) -> Any:
        triton.refuse_unload(self._api.app(asked.model_name, None))


def _model_path(asked: Any) -> str:
    return f"/v2/models/{asked.name}"


def _statistics_path(asked: Any) -> str:
    return f"/v2/models/{asked.name}/stats" if asked.name else "/v2/models/stats"
