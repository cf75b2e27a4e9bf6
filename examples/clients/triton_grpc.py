"""NVIDIA's client over gRPC: pip install tritonclient[grpc]. The gateway needs `grpc = "127.0.0.1:8081"`."""

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

with InferenceServerClient("localhost:8081") as client:
    number = InferInput("number", [2, 1], "INT64")
    number.set_data_from_numpy(np.array([[97], [91]]))
    answer = client.infer("primes", [number], client_timeout=2.0)

print(answer.as_numpy("prime").ravel().tolist())
