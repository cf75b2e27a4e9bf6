"""Configuration files: what is read, and what a person is told when it can't be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from understudy.config import load_cluster, load_manifest
from understudy.settings import Datatype
from understudy.settings.cluster import ClusterConfig
from understudy.wire.errors import Code, ConfigError
from understudy.wire.records import Criticality
from understudy.wire.tensors import DATATYPES

Write = Callable[[str], Path]

NODE = '[[nodes]]\nname = "n1"\nmemory_mb = 512\n'
VARIANT = '[[variants]]\nname = "small"\nruntime = "onnx"\nartifact = "small.onnx"\naccuracy = 0.9\n'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "file.toml"
        path.write_text(text)
        return path

    return write_file


def refusal(load: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.code is Code.CONFIG
    return str(caught.value)


# What is read


def test_the_smallest_cluster_has_every_default(write: Write) -> None:
    config = load_cluster(write(NODE))
    assert [node.name for node in config.nodes] == ["n1"]
    assert config.node("n1").site == "default"
    assert config.gateway_named("g1").http == "127.0.0.1:8080"
    assert config.controller_named("c1").http == "127.0.0.1:8090"
    assert config.gateway.http.headers_max == 100


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path) -> None:
    path = write('data_dir = "state"\napps = ["apps/digits.toml", "/abs/wine.toml"]\n' + NODE)
    config = load_cluster(path)
    assert config.data_dir == str(tmp_path / "state")
    assert config.artifacts_dir == str(tmp_path / "state" / "artifacts")
    assert config.apps == (str(tmp_path / "apps/digits.toml"), "/abs/wine.toml")
    assert config.role_dir("agent", "n1") == tmp_path / "state" / "agent" / "n1"


def test_sockets_have_short_paths_of_their_own(write: Write, tmp_path: Path) -> None:
    config = load_cluster(write(f'data_dir = "{"d" * 100}"\n' + NODE))
    assert len(config.agent_address("n1")) < 90
    other = load_cluster(write('data_dir = "another"\n' + NODE))
    assert other.run_dir != config.run_dir
    chosen = load_cluster(write('run_dir = "run"\n' + NODE))
    assert chosen.controller_addresses() == [f"unix:{tmp_path}/run/controller-c1.sock"]


def test_an_address_that_is_set_is_used(write: Write) -> None:
    config = load_cluster(write(NODE + 'listen = "tcp:10.0.0.1:7000"\n'))
    assert config.agent_address("n1") == "tcp:10.0.0.1:7000"


def test_a_manifest_is_read(write: Write) -> None:
    manifest = load_manifest(
        write(f'name = "digits"\ncriticality = "critical"\n{VARIANT}[batching]\nrows_max = 8\n')
    )
    assert manifest.criticality is Criticality.CRITICAL
    assert manifest.batching.rows_max == 8
    assert manifest.variants[0].accuracy == 0.9


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (ClusterConfig.node, "node"),
        (ClusterConfig.gateway_named, "gateway"),
        (ClusterConfig.controller_named, "controller"),
    ],
)
def test_asking_for_a_stranger_names_the_known(
    ask: Callable[[ClusterConfig, str], object], what: str, write: Write
) -> None:
    config = load_cluster(write(NODE))
    with pytest.raises(ConfigError, match=f"no {what} named 'x9' in the cluster file; it has: "):
        ask(config, "x9")


# What is refused: (text, what the message says after the name of the file)

CLUSTER_REFUSALS = [
    pytest.param("", "top level: missing required field `nodes`", id="empty"),
    pytest.param("nodes = []", "nodes: at least one [[nodes]] table is needed", id="no-nodes"),
    pytest.param(NODE + NODE, "nodes: the name 'n1' is used twice", id="twice"),
    pytest.param(
        NODE + '[[gateways]]\nname = "g"\n[[gateways]]\nname = "g"\n',
        "gateways: the name 'g' is used twice",
        id="gateway-twice",
    ),
    pytest.param(
        NODE + '[[gateways]]\nname = "g"\ngrpc = "h:1"\n'
        'tls = { cert = "c", key = "k", version_min = "1.3" }\n',
        "gateways: 'g': tls.version_min: the gRPC library can't refuse TLS 1.2",
        id="grpc-tls-1.3",
    ),
    pytest.param(
        NODE + "[[controllers]]\n[[controllers]]\n",
        "controllers: the name 'c1' is used twice",
        id="controller-twice",
    ),
    pytest.param(
        NODE + '[[controllers]]\n[[controllers]]\nname = "c2"\n',
        "controllers: one at most; several could not agree yet on what is true",
        id="two-controllers",
    ),
    pytest.param("data_dri = 'x'\n" + NODE, "data_dri: unknown field; did you mean 'data_dir'?", id="typo"),
    pytest.param(
        NODE + "memory = 5\n", "nodes[0].memory: unknown field; did you mean 'memory_mb'?", id="typo-in-list"
    ),
    pytest.param(
        NODE + "[gateway.http]\nheader_max = 5\n",
        "gateway.http.header_max: unknown field; did you mean 'headers_max'?",
        id="typo-in-table",
    ),
    pytest.param(
        NODE + "[gateway.brakers]\nopen_s = 5\n",
        "gateway.brakers: unknown field; did you mean 'breaker'?",
        id="typo-of-table",
    ),
    pytest.param(
        NODE + "[worker]\nxyz = 5\n",
        "worker.xyz: unknown field; known: frame_bytes_max, orphan_timeout_s, output_bytes_max, "
        "queue_rows_max, recheck_share, threads",
        id="nothing-near",
    ),
    pytest.param(
        '[[nodes]]\nname = "n1"\nmemory_mb = "512"\n',
        "nodes[0].memory_mb: expected `float`, got `str`",
        id="wrong-type",
    ),
    pytest.param(
        '[[nodes]]\nname = "n1"\nmemory_mb = 0\n', "nodes[0].memory_mb: expected `float` > 0.0", id="limit"
    ),
    pytest.param(
        '[[nodes]]\nname = "a b"\nmemory_mb = 1\n', "nodes[0].name: a name is 1 to 64 letters", id="name"
    ),
    pytest.param(
        NODE + '[[nodes]]\nname = "n2"\n', "nodes[1]: missing required field `memory_mb`", id="second-node"
    ),
    pytest.param(
        NODE + "[gateway.retry]\nbudget_fraction = 1.5\n",
        "gateway.retry.budget_fraction: expected `float` <= 1.0",
        id="fraction",
    ),
    pytest.param(NODE + '[plan]\nsurvive = ["rack"]\n', "plan.survive: 'rack' is no failure", id="enum"),
    pytest.param("[[nodes]\n", "not valid TOML: ", id="not-toml"),
]


@pytest.mark.parametrize(("text", "says"), CLUSTER_REFUSALS)
def test_a_bad_cluster_file_is_refused(text: str, says: str, write: Write) -> None:
    path = write(text)
    message = refusal(load_cluster, path)
    assert message.startswith(f"{path}: {says}"), message


def test_every_mistake_of_a_manifest_is_told_at_once(write: Write) -> None:
    path = write(
        f"""name = "a b"
replicas = 0
{VARIANT.replace("accuracy", "acuracy")}
[[variants]]
name = "w"
runtime = "onnx"
accuracy = 3
[[inputs]]
name = "x"
datatype = "fp32"
shape = [-5]
[outputs]
finit = "allowed"
[batching]
rows_max = 0
wait = 3
"""
    )
    said = [line.removeprefix(f"{path}: ") for line in refusal(load_manifest, path).splitlines()]
    assert [line.partition(": ")[0] for line in said] == [
        "name", "variants[0].acuracy", "variants[1]", "variants[1].accuracy", "replicas",
        "inputs[0].datatype", "inputs[0].shape[0]", "outputs.finit", "batching.wait", "batching.rows_max",
    ]  # fmt: skip
    assert said[2] == "variants[1]: missing required field `artifact`"
    path.write_text(f'name = "a"\nfallback = ["static"]\nprobe = {{}}\n{VARIANT}python = "p"\n{VARIANT}')
    said = refusal(load_manifest, path).splitlines()
    fields = ["variants[0].python", "variants[1].name", "probe.inputs", "fallback"]
    assert [line.split(": ")[1] for line in said] == fields
    path.write_text(f'{"".join(f"strange{n} = 1{chr(10)}" for n in range(1000))}name = "a"\n{VARIANT}')
    assert len(refusal(load_manifest, path)) < 10_000, "no more than anybody reads"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("float32", "FP32"), ("torch.float64", "FP64"), ("int8", "INT8"), ("str", "BYTES"), ("FP31", "FP32")],
)
def test_datatypes_as_others_call_them_are_understood(written: str, meant: str, write: Write) -> None:
    text = f'name = "a"\ninputs = [{{ name = "x", datatype = "{written}", shape = [] }}]\n{VARIANT}'
    assert refusal(load_manifest, write(text)).endswith(f"; did you mean {meant!r}?")


def test_a_file_of_the_other_kind_is_told_which_command_takes_it(write: Write) -> None:
    path = write(f'name = "a"\ncriticality = "critical"\n{VARIANT}')
    said = f"is the manifest of an app, not a cluster file: `understudy deploy {path}` takes it"
    assert refusal(load_cluster, path) == f"{path}: {said}"
    path = write(f'name = "a"\napps = []\n{NODE}')
    said = f"is a cluster file, not the manifest of an app: `understudy up {path}` takes it"
    assert refusal(load_manifest, path) == f"{path}: {said}"
    assert refusal(load_cluster, write("[[node]]\nname = 'n'\n")).count("did you mean 'nodes'?") == 1
    assert "missing required field `name`" in refusal(load_manifest, write("accuracy = 1\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[variants]\n", "is written [[variants]], each time; [variants] is one table"),
        (f'fallback = ["smaler-variant"]\n{VARIANT}', "; did you mean 'smaller-variant'?"),
        (f'fallback = ["app:-"]\n{VARIANT}', "static and app:NAME, not 'app:-'"),
    ],
)  # fmt: skip
def test_what_is_written_is_named_and_what_was_meant(text: str, says: str, write: Write) -> None:
    assert refusal(load_manifest, write(f'name = "a"\n{text}')).endswith(says)


def test_fields_that_a_newer_version_knows_can_be_left_out_and_told(write: Write) -> None:
    text = 'colour = "red"\n' + NODE + 'memory = 1\n[[nodes]]\nname = "n2"\nmemory_mb = 1\n'
    path = write(
        f"{text}[[nodes.devices]]\nname = 'd'\nmemory_mb = 1\nfans = 2\n[gateway.retry]\nbugdet = {{}}\n"
    )
    unknown: list[str] = []
    config = load_cluster(path, unknown)
    assert [device.name for device in config.nodes[1].devices] == ["d"]
    assert sorted(said.partition("; ")[0] for said in unknown) == [
        "colour: unknown field",
        "gateway.retry.bugdet: unknown field",
        "nodes[0].memory: unknown field",
        "nodes[1].devices[0].fans: unknown field",
    ]
    assert any("did you mean 'memory_mb'?" in said for said in unknown)
    assert "unknown field" in refusal(load_cluster, path)


@pytest.mark.parametrize(
    "text",
    [text for text, says in (p.values for p in CLUSTER_REFUSALS) if "unknown field" not in str(says)],
)
def test_no_other_mistake_can_be_left_out(text: str, write: Write) -> None:
    assert refusal(lambda path: load_cluster(path, []), write(text)) == refusal(load_cluster, write(text))


def test_an_unknown_field_that_cannot_be_found_again_is_refused(write: Write) -> None:
    path = write('"a`b" = 1\n' + NODE)
    assert "unknown field" in refusal(lambda path: load_cluster(path, []), path)


MANIFEST_REFUSALS = [
    pytest.param('name = "digits"\nvariants = []', "variants: ", id="no-variants"),
    pytest.param(
        f'name = "digits"\nfallback = {[f"app:a{n}" for n in range(33)]}\n{VARIANT}',
        "fallback: expected `array` of length <= 32",
        id="many-links",
    ),
    pytest.param(
        f'name = "digits"\nstand_in_for = {[f"a{n}" for n in range(257)]}\n{VARIANT}',
        "stand_in_for: expected `array` of length <= 256",
        id="many-stand-ins",
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT}{VARIANT}', "variants[1].name: 'small' is used twice", id="variant-twice"
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT}acuracy = 1\n',
        "variants[0].acuracy: unknown field; did you mean 'accuracy'?",
        id="typo",
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT.replace("0.9", "97.5")}',
        "variants[0].accuracy: expected `float` <= 1.0",
        id="percent",
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT.replace("onnx", "tensorflow", 1)}',
        "variants[0]: runtime: 'tensorflow' is not known; valid: onnx, python",
        id="runtime",
    ),
    pytest.param(
        f'name = "digits"\ncriticality = "high"\n{VARIANT}',
        "criticality: 'high' is not known; valid: critical, standard, best-effort",
        id="enum",
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT}[batching]\nrow_max = 4\n',
        "batching.row_max: unknown field; did you mean 'rows_max'?",
        id="typo-in-batching",
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT}[batching]\nrows_max = 0\n',
        "batching.rows_max: expected `int` >= 1",
        id="no-rows",
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT}[[inputs]]\nname = "x"\ndatatype = "float32"\nshape = [-1, 64]\n',
        "inputs[0].datatype: 'float32' is not known; valid: BOOL, UINT8",
        id="datatype",
    ),
    pytest.param(
        f'name = "digits"\n{VARIANT}[[inputs]]\nname = "x"\ndatatype = "FP32"\nshape = [-2]\n',
        "inputs[0].shape[0]: expected `int` >= -1",
        id="shape",
    ),
]


@pytest.mark.parametrize(("text", "says"), MANIFEST_REFUSALS)
def test_a_bad_manifest_is_refused(text: str, says: str, write: Write) -> None:
    path = write(text)
    message = refusal(load_manifest, path)
    assert message.startswith(f"{path}: {says}"), message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    assert refusal(load_cluster, path) == f"{path}: can't be read: No such file or directory"
    assert refusal(load_cluster, tmp_path) == f"{tmp_path}: can't be read: Is a directory"


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "caf\xe9"')
    assert refusal(load_manifest, path).startswith(f"{path}: not valid TOML: ")


def test_every_default_keeps_its_own_limits() -> None:
    """msgspec checks what it reads, not what the code says; so the defaults are read back."""
    config = ClusterConfig(nodes=())
    assert msgspec.convert(msgspec.to_builtins(config), ClusterConfig) == config


def test_datatypes_are_those_that_travel() -> None:
    assert set(get_args(Datatype)) == set(DATATYPES)


@pytest.mark.parametrize(
    ("name", "accepted"), [("a", True), ("a" * 64, True), ("a\\n", False), ("a" * 65, False), ("-a", False)]
)
def test_a_name_ends_where_it_ends(name: str, accepted: bool, write: Write) -> None:
    """A newline after it would split headers and logs."""
    path = write(f'name = "{name}"\n{VARIANT}')
    if accepted:
        load_manifest(path)
    else:
        assert "name: a name is 1 to 64 letters" in refusal(load_manifest, path)


def test_text_that_windows_writes_is_read_or_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "APP.toml"
    text = f'name = "digits"\n{VARIANT}'.replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_manifest(path).name == "digits"
    path.write_bytes(text.encode("utf-16"))
    assert "is UTF-16 text; save it as UTF-8" in refusal(load_manifest, path)


@pytest.mark.parametrize("value", ["1979-05-27", "07:32:00", "inf", "nan", "9" * 40, "[" * 60 + "]" * 60])
def test_options_that_cant_be_sent_are_refused_with_their_place(value: str, write: Write) -> None:
    path = write(f'name = "digits"\n{VARIANT}options = {{ a = {value} }}\n')
    assert ": variants[0].options" in refusal(load_manifest, path)
