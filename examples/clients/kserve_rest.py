"""KServe's client over HTTP: pip install kserve"""

import asyncio

from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main() -> None:
    number = InferInput("number", [2, 1], "INT64", data=[97, 91])
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=2))
    answer = await client.infer(
        "http://localhost:8080", InferRequest("primes", [number]), model_name="primes"
    )
    print(answer.outputs[0].data)


asyncio.run(main())
