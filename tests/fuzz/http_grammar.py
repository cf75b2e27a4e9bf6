"""HTTP requests, right and wrong in the ways that clients, proxies and attackers make them."""

from __future__ import annotations

from random import Random

from mutations import mutated

from understudy.wire.frames import LARGE_BYTES

METHODS = (
    (b"POST",) * 8 + (b"GET",) * 4 + (b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"PRI", b"get", b"M-SEARCH")
)
PATHS = (
    b"/v2/models/digits/infer", b"/v2/models/digits/infer", b"/v2/models/digits/infer", b"/v2",
    b"/v2/health/live", b"/v2/models/digits", b"/v2/models/digits/versions/1/infer", b"/v2/models/none/infer",
    b"/v2/models/%64igits/infer?x=1", b"/v2/models/digits/stats", b"/v2/repository/index", b"/", b"*",
    b"http://host/v2", b"HTTP://host:80/v2/models/digits/infer/", b"https://h", b"/v2/models/",
    b"/v2/health/live//", b"/%ff%00%0d%0a", b"/" + b"a" * 300, b"/" + b"a" * 3000, b"",
)  # fmt: skip
VERSIONS = (b"HTTP/1.1",) * 20 + (b"HTTP/1.0",) * 3 + (b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.9", b"HTTP", b"")
HEADERS = (
    b"Host: t", b"Host: t", b"Accept: */*", b"Connection: keep-alive", b"Connection: close",
    b"Connection: Upgrade\r\nUpgrade: h2c", b"Upgrade: websocket", b"Expect: 100-continue",
    b"Expect: the worst", b"Understudy-Timeout-Ms: 5", b"Understudy-Timeout-Ms: -1",
    b"Understudy-Timeout-Ms: nan",
    b"Inference-Header-Content-Length: 2", b"Inference-Header-Content-Length: x", b"Content-Encoding: br",
    b"Content-Encoding: gzip", b"Cookie: " + b"c" * 500, b"Cookie: " + b"c" * 3000, b"X: \xff\xfe", b"X:",
    b"X: a\r\n b", b": x", b"X\0: y", b"X : y", b"Trailer: X", b"Keep-Alive: 5",
)  # fmt: skip
LENGTHS = (
    b"-1",
    b"+2",
    b"0x2",
    b"2, 2",
    b"2 ",
    b"",
    b"1e1",
    b"99999999999999999999",
    b"300000",
    b"02",
    b"2\t",
)
ENCODINGS = (b"chunked",) * 6 + (
    b"gzip",
    b"identity",
    b"chunked, chunked",
    b"gzip, chunked",
    b"xchunked",
    b"",
)
BODIES = (b"{}", b"{}", b"", b"[1]", b'{"inputs":[]}', b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 700)
RUBBISH = (b"\r\n", b"\r\n\r\n", b"\0" * 30, b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n", b"a" * 5000)


def stream(rng: Random) -> bytes:
    """What a client sends on one connection."""
    how = rng.random()
    if how < 0.15:  # the same request again and again, as most clients do
        data = request(rng, usual=True) * rng.choice((2, 5, 20))
    else:
        data = b"".join(request(rng, usual=rng.random() < 0.5) for _ in range(rng.choice((1, 1, 2, 3, 6))))
    if rng.random() < 0.05:
        data += rng.choice(RUBBISH) + request(rng, usual=True)
    if rng.random() < 0.4:
        data = mutated(rng, data, (request(rng, usual=False), *RUBBISH))
    return data


def request(rng: Random, *, usual: bool) -> bytes:
    if usual:
        body = rng.choice(BODIES)
        head = b"POST %b HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n" % (rng.choice(PATHS[:5]), len(body))
        return head + b"\r\n" + body
    headers = [rng.choice(HEADERS) for _ in range(rng.choice((0, 1, 2, 4)))]
    if rng.random() < 0.9 and b"Host: t" not in headers:
        headers.append(b"Host: t")
    if rng.random() < 0.03:
        headers += [b"X-%d: y" % number for number in range(rng.choice((15, 25, 60)))]
    body = rng.choice(BODIES) if rng.random() < 0.995 else bytes(LARGE_BYTES + rng.randrange(-2, 3000))
    how = rng.random()
    if how < 0.55:
        wrong = rng.choice((-2, -1, 1, 5)) if rng.random() < 0.1 else 0
        headers.append(b"Content-Length: %d" % (len(body) + wrong))
    elif how < 0.8:
        headers.append(b"Transfer-Encoding: " + rng.choice(ENCODINGS))
        body = chunked(rng, body)
    elif how < 0.9:
        headers.append(b"Content-Length: " + rng.choice(LENGTHS))
    if rng.random() < 0.03:  # two that may contradict each other
        headers.append(rng.choice((b"Content-Length: 2", b"Transfer-Encoding: chunked")))
    rng.shuffle(headers)
    line = b" ".join((rng.choice(METHODS), rng.choice(PATHS), rng.choice(VERSIONS)))
    return b"\r\n".join((line, *headers, b"", b"")) + body


def chunked(rng: Random, body: bytes) -> bytes:
    parts = []
    while body:
        size = rng.choice((1, 2, 7, len(body)))
        chunk, body = body[:size], body[size:]
        said = len(chunk) + (rng.choice((-1, 1, 2**31, 2**62)) if rng.random() < 0.01 else 0)
        form = rng.choice((b"%x", b"%X", b"00%x")) % max(said, 0)
        extension = rng.choice((b";a=b", b';a="b;c"', b";" + b"e" * 2000)) if rng.random() < 0.03 else b""
        parts.append(form + extension + b"\r\n" + chunk + b"\r\n")
    trailers = b""
    if rng.random() < 0.1:
        line = (b"Understudy-Timeout-Ms: 1\r\n", b"Content-Length: 9\r\n", b"T: " + b"t" * 2000 + b"\r\n")
        trailers = rng.choice(line) * rng.choice((1, 1, 30))
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"
