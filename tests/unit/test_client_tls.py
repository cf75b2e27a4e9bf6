"""The client over TLS: whom it trusts."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import numpy as np
import pytest
import trustme
from client_world import Scripted

from understudy.client import AsyncClient, InvalidInput, Unavailable

X = {"x": np.array([[1.0, 2.0]], np.float32)}


def test_only_a_known_authority_is_trusted(tmp_path: Path):
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def test() -> None:
        scripted = Scripted()
        server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server:
            async with AsyncClient(f"https://localhost:{port}", ca=ca) as client:
                answer = await client.infer("double", X)
                assert answer.outputs["y"].tolist() == [[2.0, 4.0]]
                assert answer.gateway == f"https://localhost:{port}"
            for url, trusted in ((f"https://localhost:{port}", None), (f"https://127.0.0.1:{port}", ca)):
                async with AsyncClient(url, ca=trusted) as client:
                    with pytest.raises(Unavailable, match=r"TLS: .*(?i:verify)"):
                        await client.infer("double", X, timeout_s=1)
            if scripted.open:
                await asyncio.wait(scripted.open)

    asyncio.run(test())


def test_a_missing_file_of_certificates_is_told_at_once(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"ca: .*none\.pem can't be used: No such file"):
        AsyncClient("https://a", ca=tmp_path / "none.pem")
