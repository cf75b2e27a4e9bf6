"""Understudy's own client: several gateways, one deadline, arrays in and out."""

import numpy as np

from understudy import Client

with Client(["http://localhost:8080"], timeout_s=2.0) as client:
    answer = client.infer("primes", {"number": np.array([[97], [91]])})

print(answer.outputs["prime"].ravel().tolist(), "by", answer.variant, "degraded:", answer.degraded)
