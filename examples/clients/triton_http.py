"""NVIDIA's client over HTTP: pip install tritonclient[http]"""

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

with InferenceServerClient("localhost:8080") as client:
    number = InferInput("number", [2, 1], "INT64")
    number.set_data_from_numpy(np.array([[97], [91]]))
    answer = client.infer("primes", [number], headers={"Understudy-Timeout-Ms": "2000"})

print(answer.as_numpy("prime").ravel().tolist())
