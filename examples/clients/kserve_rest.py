"""KServe's client over HTTP: pip install kserve"""

import asyncio

from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main() -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=2))
    request = InferRequest("primes", [InferInput("number", [2, 1], "INT64", data=[97, 91])])
    answer = await client.infer("http://localhost:8080", request, model_name="primes")
    print(answer.outputs[0].data)


asyncio.run(main())
