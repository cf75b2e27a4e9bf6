"""tritonclient's gRPC half, importable beside kserve: both define messages of the same names.

A pool of protobuf descriptors refuses the second definition of a name, and generated code uses the default
pool, so this one is given another for as long as it is imported.
"""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pool

_pool = descriptor_pool.DescriptorPool()
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(descriptor_pool, "Default", lambda: _pool)
    import tritonclient.grpc as client
    import tritonclient.grpc.aio as aio_client

__all__ = ["aio_client", "client"]
