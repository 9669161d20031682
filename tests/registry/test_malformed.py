"""Two hundred and more malformed adapters, archives and inputs, made from good ones: each is refused in one sentence,
none crashes, and none leaves a trace."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from t5refine_peft import AdapterRegistry, RefineError

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "card.json"
BYTE_CASES = 60
"""Of each kind of file that is damaged byte by byte."""


def one_sentence(error: RefineError) -> None:
    message = str(error)
    assert message
    assert message.isprintable(), message
    assert len(message) < 1200, message
    assert "Traceback" not in message


def files_of(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content cut off, lengthened, or with some bytes changed, moved or doubled."""
    data = bytearray(content)
    at = rng.randrange(len(data))
    match rng.randrange(5):
        case 0:
            del data[at:]
        case 1:
            data += rng.randbytes(rng.randrange(1, 50))
        case 2:
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 3:
            del data[at : at + rng.randrange(1, 40)]
        case 4:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
    return bytes(data)


WRONG_SETTINGS: list[dict[str, Any]] = [
    *({"r": value} for value in (0, -1, 3, 2.0, "2", None, True, [2], 1 << 40, float("nan"))),
    *({"lora_alpha": value} for value in (0, -1, "3", None, float("inf"), float("nan"), {}, True)),
    *(
        {"target_modules": value}
        for value in ("q", ".*", "(a+)+$", [], ["("], [1], None, {"q": 1}, ["q", "../x"], ["q"])
    ),
    *(
        {"target_modules": ["k", "o", "q", "v", "wi_0", "wi_1", "wo", extra]}
        for extra in ("lm_head", "shared", "dense")
    ),
    *({"peft_type": value} for value in ("IA3", "lora", None, 1, "X_LORA")),
    *({"task_type": value} for value in ("CAUSAL_LM", 1, ["SEQ_2_SEQ_LM"])),
    *({"lora_dropout": value} for value in (1, -0.1, "0", None, True)),
    *({"base_model_name_or_path": value} for value in (1, ["x"], {})),
    *({"init_lora_weights": value} for value in ("pissa", "olora", "loftq", "eva", 2, ["x"])),
    {"bias": "all"},
    {"use_dora": True},
    {"use_rslora": "yes"},
    {"inference_mode": "yes"},
    {"inference_mode": 1},
    {"peft_version": 1},
    {"megatron_config": {"a": 1}},
    {"megatron_core": "os"},
    {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
    {"modules_to_save": ["lm_head"]},
    {"rank_pattern": {"(a+)+$": 2}},
    {"alpha_pattern": {"q": 2}},
    {"layers_to_transform": [0]},
    {"layers_pattern": ["(a+)+$"]},
    {"exclude_modules": "(a+)+$"},
    {"trainable_token_indices": [1, 2]},
    {"target_parameters": ["x"]},
    {"layer_replication": [[0, 1]]},
    {"something_new": [1]},
    *(
        {key: empty}
        for key in (
            "kasa_config",
            "eva_config",
            "arrow_config",
            "use_bdlora",
            "trainable_token_indices",
            "target_parameters",
        )
        for empty in ({}, [], "", 0)
    ),
    *({key: value} for key in ("use_dora", "fan_in_fan_out", "rank_pattern") for value in ([], "", 0)),
    {"\u001b[31m": "\u001b[2J"},
]


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def wrong_weights(content: bytes) -> Iterator[bytes]:
    """Weight files whose header lies."""
    header, data = header_of(content)
    names = [name for name in header if name != "__metadata__"]
    first, second = names[0], names[1]
    for dtype in ("F64", "I8", "BOOL", "U8", "F8_E4M3", "X", 1, None):
        yield with_header({**header, first: {**header[first], "dtype": dtype}}, data)
    for shape in ([2], [32, 2], [64], [2, 31], [1, 64], [0, 32], [], [2, -32], [1 << 63, 2], "2x32", [2.0, 32]):
        yield with_header({**header, first: {**header[first], "shape": shape}}, data)
    for offsets in ([0, 0], [0, 1 << 62], [-1, 127], [128, 0], header[second]["data_offsets"], "x"):
        yield with_header({**header, first: {**header[first], "data_offsets": offsets}}, data)
    others = ("lora_magnitude_vector", "lora_C", "lora_embedding_A", "lora_A.default")
    names = ["x", "../x", "\u001b[2J", first + "\n", first.replace(".weight", ".bias")]
    names += [f"base_model.model.{layer}.lora_A.weight" for layer in ("lm_head", "shared", "base_model.model.encoder")]
    for name in (*names, *(first.replace("lora_A", other) for other in others)):
        renamed = {name if key == first else key: value for key, value in header.items()}
        yield with_header(renamed, data)
    yield with_header({key: value for key, value in header.items() if key != first}, data)
    yield with_header({}, b"")
    yield with_header([], data)
    yield with_header(b"{" * 5000, data)
    yield with_header(b"\xff\xfe", data)
    yield struct.pack("<Q", 1 << 62) + content[8:]
    yield struct.pack("<Q", 0) + content[8:]
    yield b""
    yield b"\x80\x04\x95"
    yield content + b"\0"


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda adapter: (adapter / name).write_bytes(content)


def wrong_adapters(good: Path) -> Iterator[Callable[[Path], object]]:
    """What makes the good adapter one that no base takes, told from its headers and card."""
    config = json.loads((good / CONFIG).read_text())
    for change in WRONG_SETTINGS:
        yield put(CONFIG, json.dumps({**config, **change}).encode())
    for content in wrong_weights((good / WEIGHTS).read_bytes()):
        yield put(WEIGHTS, content)
    for name in (CONFIG, CARD):
        for content in (
            b"",
            b"[]",
            b"null",
            b"[" * 100_000,
            b'{"r": ' + b"9" * 10_000 + b"}",
            b"\xff",
            b'{"a": 1',
            b"1",
        ):
            yield put(name, content)
    card = json.loads((good / CARD).read_text())
    for key in ("base_fingerprint", "tokenizer_fingerprint"):
        for value in ("0", 1, ["x"], "\u001b[2J" * 100):
            yield put(CARD, json.dumps({**card, key: value}).encode())
    yield lambda adapter: (adapter / WEIGHTS).unlink()
    yield lambda adapter: (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    yield lambda adapter: (adapter / CARD).unlink() or (adapter / CARD).mkdir()
    yield lambda adapter: (adapter / WEIGHTS).unlink() or (adapter / WEIGHTS).mkdir()


def changed_adapters(good: Path) -> Iterator[Callable[[Path], object]]:
    """What makes the good adapter another than its card says: some of it can only be told by reading it through."""
    card = json.loads((good / CARD).read_text())
    for value in ("0", 1, ["x"], "\u001b[2J" * 100):
        yield put(CARD, json.dumps({**card, "adapter_fingerprint": value}).encode())
    rng = random.Random(0)
    for name in (CONFIG, WEIGHTS):
        for _ in range(BYTE_CASES // 2):
            yield put(name, damaged((good / name).read_bytes(), rng))


@pytest.mark.parametrize(("cases", "through", "least"), [(wrong_adapters, False, 140), (changed_adapters, True, 60)])
def test_malformed_adapters_are_refused(registry, identity, tmp_path: Path, cases, through: bool, least: int):
    good, bad = registry.find("heart"), registry.directory / "bad"
    ask = registry.verify if through else registry.check
    ask("heart", identity)
    spoilers = list(cases(good))
    assert len(spoilers) >= least
    for spoil in spoilers:
        shutil.copytree(good, bad)
        spoil(bad)
        before = files_of(tmp_path)
        with pytest.raises(RefineError) as caught:
            ask("bad", identity)
        one_sentence(caught.value)
        assert files_of(tmp_path) == before
        shutil.rmtree(bad)


def test_damaged_archives_are_refused_or_give_the_very_adapter(registry: AdapterRegistry, tmp_path: Path):
    content = registry.pack("heart", tmp_path / "heart.zip").read_bytes()
    good, before = files_of(registry.find("heart")), files_of(registry.directory)
    rng = random.Random(1)
    refused = 0
    while refused < BYTE_CASES:
        (tmp_path / "bad.zip").write_bytes(damaged(content, rng))
        try:
            registry.unpack(tmp_path / "bad.zip", domain="bad")
        except RefineError as error:
            one_sentence(error)
            refused += 1
        else:  # a byte that says nothing, such as a date
            assert files_of(registry.find("bad")) == good
            registry.remove("bad")
        assert files_of(registry.directory) == before


def test_malformed_names_are_refused_wherever_one_is_taken(registry: AdapterRegistry, tmp_path: Path):
    archive = registry.pack("heart", tmp_path / "heart.zip")
    before = files_of(tmp_path)
    rng = random.Random(2)
    for _ in range(BYTE_CASES):
        at = rng.randrange(len("heart") + 1)
        name = (
            "heart"[:at] + "".join(rng.choices("/\\:*?\0\n\u001b\u202e \ud800", k=rng.randrange(1, 4))) + "heart"[at:]
        )
        for ask in (
            registry.find,
            registry.card,
            registry.verify,
            registry.remove,
            lambda name: registry.pack(name, tmp_path / "out.zip"),
            lambda name: registry.unpack(archive, domain=name),
        ):
            with pytest.raises(RefineError, match="can't name an adapter") as caught:
                ask(name)
            one_sentence(caught.value)
    assert files_of(tmp_path) == before
