"""Who is let in, with what, to what: keys, tokens, and everything that looks a little like them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from understudy.gateway.auth import (
    Authenticator,
    Identity,
    headers_of,
    identities,
    may_be_answered_by,
    pattern_of,
)
from understudy.gateway.tokens import TokenVerifier
from understudy.settings.security import JwtGrant, JwtSettings, KeyEntry, KeyFile
from understudy.wire.errors import Code, ConfigError, UnderstudyError
from understudy.wire.records import AppVersion

SECRET = "4f1d7c9ab0e24c3e8a55d0f3b7c61e22"
OTHER = "99aa7c9ab0e24c3e8a55d0f3b7c61eff"
ISSUER, AUDIENCE = "https://id.example", "understudy"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = Ed25519PrivateKey.generate()
SETTINGS = JwtSettings(
    issuer=ISSUER,
    audience=AUDIENCE,
    jwks="file:unused",
    grants=(
        JwtGrant(value="robot-*", apps=("digits",)),
        JwtGrant(claim="groups", value="sre", operator=True),
        JwtGrant(claim="scope", value="infer:*", apps=("shop-*",)),
    ),
    algorithms=("RS256", "ES256", "EdDSA"),
    tokens_max=4,
)


def entry(name: str, secret: str, **more: Any) -> KeyEntry:
    return KeyEntry(name, sha256(secret.encode()).hexdigest(), **more)


KEYS = KeyFile((entry("shop", SECRET, apps=("shop-*", "digits")), entry("sre", OTHER, operator=True)))


def public(kid: str, key: Any, **more: str) -> dict[str, Any]:
    kind: Any = jwt.algorithms.ECAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        kind = jwt.algorithms.RSAAlgorithm
    elif isinstance(key, Ed25519PrivateKey):
        kind = jwt.algorithms.OKPAlgorithm
    found: dict[str, Any] = kind.to_jwk(key.public_key(), as_dict=True)
    return {"kid": kid, **found, **more}


def document(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


ALL_KEYS = document(public("r", RSA), public("e", EC), public("d", ED), public("weak", WEAK))


def token(key: Any = RSA, kid: str | None = "r", alg: str = "RS256", **claims: Any) -> bytes:
    now = int(time.time())
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "robot-7", "iat": now, "exp": now + 60, **claims}
    kept = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(kept, key, algorithm=alg, headers={"kid": kid} if kid else {}).encode()


class Client(msgspec.Struct):
    address: str


HERE, THERE = Client("192.0.2.1"), Client("192.0.2.2")


class Door:
    """An authenticator, with the calls for fresh keys counted."""

    def __init__(self, settings: JwtSettings = SETTINGS, keys: bytes = ALL_KEYS, at: float | None = None):
        self.unknown = 0
        self.now = time.time()
        self.tokens = TokenVerifier(settings, self._count)
        self.tokens.take_keys(keys, self.now if at is None else at)
        self.auth = Authenticator(identities(KEYS), self.tokens, lambda: self.now)

    def _count(self) -> None:
        self.unknown += 1

    def bearer(self, secret: bytes, app: str = "digits", peer: Client = HERE) -> str:
        return self.auth.check({b"authorization": b"Bearer " + secret}, app, peer).client

    def refusal(self, secret: bytes, app: str = "digits") -> UnderstudyError:
        with pytest.raises(UnderstudyError) as caught:
            self.bearer(secret, app)
        assert secret.decode("latin-1")[-20:] not in str(caught.value)
        return caught.value


def test_a_key_is_known_by_its_digest_in_either_header() -> None:
    door = Door()
    assert door.bearer(SECRET.encode(), "shop-books") == "key:shop"
    assert door.auth.check({b"x-api-key": SECRET.encode()}, "digits", HERE).client == "key:shop"
    assert (
        door.auth.check({b"authorization": b"bEARER " + SECRET.encode()}, "digits", HERE).client == "key:shop"
    )
    assert SECRET not in repr(door.auth.__dict__)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer "},
        {b"authorization": SECRET.encode()},
        {b"authorization": b"Basic " + base64.b64encode(SECRET.encode())},
        {b"authorization": b"Bearer " + SECRET.encode() + b"x"},
        {b"x-api-key": SECRET.upper().encode()},
        {b"x-api-key": sha256(SECRET.encode()).hexdigest().encode()},
        {b"x-api-key": sha256(SECRET.encode()).digest()},
        {b"x-api-key": SECRET.encode(), b"authorization": b"Bearer " + SECRET.encode()},
    ],
)
def test_what_is_not_a_key_is_refused(headers: dict[bytes, bytes]) -> None:
    door = Door()
    with pytest.raises(UnderstudyError) as caught:
        door.auth.check(headers, "digits", HERE)
    assert caught.value.code is Code.UNAUTHENTICATED
    assert SECRET not in str(caught.value)
    assert door.auth.refused == 1


def test_an_identity_may_use_its_apps_only() -> None:
    door = Door()
    for app in ("other", "Digits", "digits2", "xshop-a", ""):
        assert door.refusal(SECRET.encode(), app).code is Code.FORBIDDEN
    with pytest.raises(UnderstudyError, match="may not use"):
        door.bearer(OTHER.encode())  # an operator of the gateway is no user of its models


OPERATORS_ONLY = [
    "/understudy/status", "/v2/repository/index", "/v2/repository/models/digits/unload", "/v2/models/stats",
    "/v2/models", "/v2/models/", "/", "/metrics", "/v2/health", "/v2/health/live/", "//v2/health/live",
]  # fmt: skip


@pytest.mark.parametrize("path", OPERATORS_ONLY)
def test_what_is_not_listed_is_for_operators(path: str) -> None:
    door = Door()
    with pytest.raises(UnderstudyError) as caught:
        door.auth.check_path({b"x-api-key": SECRET.encode()}, path, HERE)
    assert caught.value.code is Code.FORBIDDEN
    operator = door.auth.check_path({b"x-api-key": OTHER.encode()}, path, HERE)
    assert operator is not None
    assert operator.client == "key:sre"


def test_paths_of_an_app_need_its_permission_and_health_needs_none() -> None:
    door = Door()
    key = {b"x-api-key": SECRET.encode()}
    for path in (
        "/v2/models/digits",
        "/v2/models/digits/ready",
        "/v2/models/digits/versions/1/config",
        "/v2",
    ):
        assert door.auth.check_path(key, path, HERE)
        with pytest.raises(UnderstudyError, match="send an API key"):
            door.auth.check_path({}, path, HERE)
    with pytest.raises(UnderstudyError, match="may not use"):
        door.auth.check_path(key, "/v2/models/other/ready", HERE)
    assert door.auth.check_path({}, "/v2/health/ready", HERE) is None


@pytest.mark.parametrize(
    ("identity", "stand_in_for", "may"),
    [
        (None, (), True),
        (Identity("key:a", pattern_of(["shop"])), (), False),
        (Identity("key:a", pattern_of(["shop", "rules"])), (), True),
        (Identity("key:a", pattern_of(["shop"])), ("shop",), True),
        (Identity("key:a", pattern_of(["shop"])), ("sh*",), True),
        (Identity("key:a", pattern_of(["shop"])), ("shops", "*-shop", "SHOP"), False),
    ],
)
def test_another_apps_answer_is_for_who_may_ask_it_or_where_it_agreed(
    identity: Identity | None, stand_in_for: tuple[str, ...], may: bool
) -> None:
    asked = AppVersion("shop", 1, ())
    assert may_be_answered_by(identity, asked, AppVersion("rules", 1, (), stand_in_for=stand_in_for)) is may


def test_a_key_that_is_taken_out_is_refused_at_once() -> None:
    door = Door()
    door.bearer(SECRET.encode())
    door.auth.keys = identities(KeyFile())
    assert door.refusal(SECRET.encode()).code is Code.UNAUTHENTICATED


def test_one_key_may_not_be_two() -> None:
    with pytest.raises(ConfigError, match="the same key"):
        identities(KeyFile((entry("a", SECRET), entry("b", SECRET))))


def test_metadata_of_grpc_has_each_credential_once() -> None:
    assert headers_of([("authorization", "Bearer x"), ("other", "y")]) == {b"authorization": b"Bearer x"}
    with pytest.raises(UnderstudyError, match="twice"):
        headers_of([("x-api-key", "x"), ("X-Api-Key", b"y")])


# tokens


@pytest.mark.parametrize(("key", "kid", "alg"), [(RSA, "r", "RS256"), (EC, "e", "ES256"), (ED, "d", "EdDSA")])
def test_a_token_of_the_issuer_is_taken(key: Any, kid: str, alg: str) -> None:
    assert Door().bearer(token(key, kid, alg)) == "jwt:robot-7"


def test_claims_grant_permissions() -> None:
    door = Door()
    assert door.bearer(token(scope="mail infer:all"), "shop-books") == "jwt:robot-7"
    assert door.refusal(token(sub="person"), "digits").code is Code.FORBIDDEN
    assert door.refusal(token(groups=["dev", 7, None]), "shop-x").code is Code.FORBIDDEN
    headers = {b"authorization": b"Bearer " + token(groups=["dev", "sre"])}
    assert door.auth.check_operator(headers, HERE).operator


NOW = int(time.time())


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": NOW - 300}, "expired"),
        ({"nbf": NOW + 300}, "not valid yet"),
        ({"iat": NOW + 300}, "not valid yet"),
        ({"aud": "somebody"}, "audience"),
        ({"aud": None}, "lacks|audience"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "lacks|issuer"),
        ({"exp": None}, "lacks"),
        ({"sub": None}, "lacks"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"exp": 10**400}, "malformed"),
    ],
)
def test_claims_are_checked(claims: dict[str, Any], why: str) -> None:
    error = Door().refusal(token(**claims))
    assert error.code is Code.UNAUTHENTICATED
    assert any(word in error.message for word in why.split("|")), error.message


def test_clocks_may_be_apart_by_the_leeway() -> None:
    now = int(time.time())  # not that of the import, which may be long ago
    assert Door().bearer(token(exp=now - 10, iat=now - 70))
    assert Door().bearer(token(nbf=now + 20))


def forged(header: dict[str, Any], claims: dict[str, Any], signature: Callable[[bytes], bytes]) -> bytes:
    def encoded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    head = encoded(json.dumps(header).encode()) + b"." + encoded(json.dumps(claims).encode())
    return head + b"." + encoded(signature(head))


def hmac_with_public_key(head: bytes) -> bytes:
    import hmac

    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hmac.digest(pem, head, "sha256")


def signed_by_weak_key(head: bytes) -> bytes:
    return WEAK.sign(head, padding.PKCS1v15(), hashes.SHA256())


GOOD = {"iss": ISSUER, "aud": AUDIENCE, "sub": "robot-7", "exp": NOW + 1000}


@pytest.mark.parametrize(
    "attack",
    [
        forged({"alg": "none", "kid": "r"}, GOOD, lambda _: b""),
        forged({"alg": "None"}, GOOD, lambda _: b""),
        forged({"alg": "", "kid": "r"}, GOOD, lambda _: b""),
        forged({"alg": "HS256", "kid": "r"}, GOOD, hmac_with_public_key),
        forged({"alg": "RS256", "kid": "r"}, GOOD, hmac_with_public_key),
        forged({"alg": "ES256", "kid": "r"}, GOOD, lambda _: bytes(64)),
        forged({"alg": "ES256", "kid": "e"}, GOOD, lambda _: bytes(64)),
        forged({"alg": ["RS256"], "kid": "r"}, GOOD, lambda _: b"x"),
        forged({"alg": "RS256", "kid": {"a": 1}}, GOOD, lambda _: b"x"),
        forged({"kid": "r"}, GOOD, lambda _: b"x"),
        token(EC, "r", "ES256"),
        token(RSA, "e", "RS256"),
        token(RSA, "r", "RS512"),
        token(RSA, "r", "PS256"),
        jwt.encode(GOOD, RSA, "RS256", headers={"kid": "r", "crit": ["exp"]}).encode(),
        forged({"alg": "RS256", "kid": "weak"}, GOOD, signed_by_weak_key),
        jwt.encode(GOOD, ED, "EdDSA", headers={"kid": "x", "jwk": public("x", ED)}).encode(),
        token(RSA, None),
        token()[:-8] + b"AAAAAAAA",
        token() + b".x",
        b"a.b.c",
        b"..",
        forged({"alg": "RS256", "kid": "r", "x": [[[[[[]]]]]]}, GOOD, lambda _: b"x"),
        base64.urlsafe_b64encode(b"[" * 700) + b".e30.x",
    ],
    ids=lambda _: "token",  # they differ from process to process
)  # fmt: skip
def test_forged_tokens_are_refused(attack: bytes) -> None:
    assert Door().refusal(attack).code is Code.UNAUTHENTICATED


@given(st.binary(max_size=300) | st.text(".eyJ0-_", max_size=60).map(str.encode))
def test_any_bytes_are_refused_without_a_crash(rubbish: bytes) -> None:
    with pytest.raises(UnderstudyError):
        DOOR.auth.check({b"authorization": b"Bearer " + rubbish}, "digits", HERE)


DOOR = Door()


def test_a_huge_token_is_refused_unread() -> None:
    error = Door().refusal(token(pad="x" * 20_000))
    assert "too long" in error.message


def test_a_token_without_key_id_needs_a_single_key() -> None:
    assert Door(keys=document(public("r", RSA))).bearer(token(kid=None))


def test_an_expired_token_is_refused_though_it_was_seen_before() -> None:
    door = Door()
    known = token()
    door.bearer(known)
    door.now += 60 + SETTINGS.leeway_s - 5
    assert door.bearer(known)
    door.now += 6
    with pytest.raises(UnderstudyError):
        door.tokens.verify(b"a.b.c", door.now, HERE.address)
    assert not any(door.now < i.expires_at for i in door.auth._verified.values())


def test_remembered_tokens_are_bounded() -> None:
    door = Door()
    for number in range(3 * SETTINGS.tokens_max):
        door.bearer(token(jti=str(number)))
        assert len(door.auth._verified) <= SETTINGS.tokens_max


def test_tokens_end_with_the_keys_that_signed_them() -> None:
    door = Door()
    known = token()
    door.bearer(known)
    assert not door.tokens.take_keys(ALL_KEYS, door.now), "the same keys are no change"
    assert door.tokens.take_keys(document(public("e", EC)), door.now)
    door.auth.forget_tokens()
    assert door.refusal(known).code is Code.UNAUTHENTICATED
    assert door.unknown == 1, "the key isn't known, so it should be asked for"


def test_without_fresh_keys_nobody_is_called_a_stranger() -> None:
    door = Door(at=time.time() - SETTINGS.jwks_age_s_max - 1)
    assert door.refusal(token()).code is Code.UNAVAILABLE
    assert door.unknown == 1
    assert door.bearer(SECRET.encode()) == "key:shop", "keys need no issuer"


@pytest.mark.parametrize(
    "keys",
    [
        b"", b"[]", b"{}", b"{" * 5000, b'{"a":' * 3000, b"\xff",
        document(public("w", WEAK)),
        document({"kty": "oct", "k": "c2VjcmV0", "kid": "r"}),
        document(public("r", RSA, use="enc")),
        document(public("r", RSA, alg="HS256")),
        document(public("r", RSA, n="!!")),
        document({**public("r", RSA), "kid": 7}),
        document(jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True)),
    ],
)  # fmt: skip
def test_keys_that_can_verify_nothing_are_refused(keys: bytes) -> None:
    with pytest.raises(ConfigError):
        Door(keys=keys)


def test_symmetric_algorithms_can_not_be_configured() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**msgspec.to_builtins(SETTINGS), "algorithms": ["HS256"]}, JwtSettings)


def test_forged_tokens_cost_few_signatures_and_good_ones_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(msgspec.structs.replace(SETTINGS, refused_per_s_max=0.01))
    good = token()
    assert door.bearer(good) == "jwt:robot-7"
    forged = [good[:-9] + str(10**8 + number).encode() for number in range(20)]
    assert door.refusal(forged[0]).code is Code.UNAUTHENTICATED
    with monkeypatch.context() as patch:
        patch.setattr(door.tokens._jwt, "decode", lambda *_args, **_kwargs: pytest.fail("it was verified"))
        for each in forged:
            refusal = door.refusal(each)
            assert refusal.code is Code.RATE_LIMITED
            assert 90 < refusal.context["wait_s"] <= 100
        assert door.bearer(good) == "jwt:robot-7", "it is remembered"
        assert door.bearer(SECRET.encode()) == "key:shop"
        assert door.refusal(token(kid="unknown")).code is Code.UNAUTHENTICATED, "a new key of the issuer"
    assert door.bearer(token(jti="new"), peer=THERE) == "jwt:robot-7", "others are not concerned"
