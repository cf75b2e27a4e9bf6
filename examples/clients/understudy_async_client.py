"""The same for coroutines: ten questions at once."""

import asyncio

from understudy import AsyncClient


async def main() -> None:
    async with AsyncClient("http://localhost:8080", timeout_s=2.0) as client:
        answers = await asyncio.gather(*(client.infer("primes", [[number]]) for number in range(90, 100)))
    print([bool(answer.outputs["prime"]) for answer in answers])


asyncio.run(main())
