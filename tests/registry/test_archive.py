from __future__ import annotations

import json
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from t5refine_peft import AdapterRegistry, RefineError

FILES = ["adapter_config.json", "adapter_model.safetensors", "card.json", "report.html"]


@pytest.fixture
def good(registry: AdapterRegistry) -> dict[str, bytes]:
    """What an archive of `heart` holds."""
    return {f"heart/{name}": (registry.find("heart") / name).read_bytes() for name in FILES}


def write(path: Path, entries: dict[str, bytes] | list[tuple[object, bytes]], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            packed.writestr(name, content)
    return path


def refused(tmp_path: Path, archive: Path) -> str:
    """The sentence with which `archive` is refused, having left nothing anywhere."""
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    with pytest.raises(RefineError) as caught:
        AdapterRegistry(tmp_path / "fresh").unpack(archive)
    after = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    after.pop(tmp_path / "fresh", None)
    before.pop(tmp_path / "fresh", None)
    assert after == before
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_packed_and_unpacked_it_is_the_same_to_the_byte(registry: AdapterRegistry, tmp_path: Path):
    archive = registry.pack("heart", tmp_path / "out" / "heart.zip")
    again = registry.pack("heart", tmp_path / "again.zip")
    assert archive.read_bytes() == again.read_bytes()
    other = AdapterRegistry(tmp_path / "elsewhere")
    assert other.unpack(archive) == "heart"
    for name in FILES:
        assert (other.find("heart") / name).read_bytes() == (registry.find("heart") / name).read_bytes()
    assert other.verify("heart").recorded
    assert registry.unpack(archive, domain="cardiology") == "cardiology"
    assert registry.names() == ["cardiology", "heart", "law"]


def test_an_adapter_without_card_or_report_travels_too(registry: AdapterRegistry, tmp_path: Path):
    for name in ("card.json", "report.html"):
        (registry.find("heart") / name).unlink()
    registry.unpack(registry.pack("heart", tmp_path / "heart.zip"), domain="bare")
    assert sorted(path.name for path in registry.find("bare").iterdir()) == FILES[:2]


def test_what_is_there_is_never_replaced(registry: AdapterRegistry, tmp_path: Path):
    archive = registry.pack("heart", tmp_path / "heart.zip")
    with pytest.raises(RefineError, match="is there already: choose another name"):
        registry.unpack(archive)
    with pytest.raises(RefineError, match="can't name an adapter"):
        registry.unpack(archive, domain="../law")
    assert registry.verify("heart").recorded


def test_a_broken_adapter_is_not_packed(registry: AdapterRegistry, tmp_path: Path):
    (registry.find("heart") / "adapter_config.json").write_text("{}")
    with pytest.raises(RefineError, match="peft_type must be 'LORA'"):
        registry.pack("heart", tmp_path / "heart.zip")
    assert not (tmp_path / "heart.zip").exists()


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "../../card.json", "/card.json", "/tmp/card.json", "heart/../../card.json", "heart/../card.json",
     "C:/card.json", "..\\card.json", "heart\\card.json", "heart/sub/card.json", "card.json", "heart/extra.txt",
     "heart/card.json\0.txt", "..", "heart/", "./card.json", "~/card.json", "con/card.json", "\u202e/card.json"],
)  # fmt: skip
def test_paths_that_lead_out_or_elsewhere_are_refused(good, tmp_path: Path, name: str):
    entry = zipfile.ZipInfo()
    entry.filename = entry.orig_filename = name
    message = refused(tmp_path, write(tmp_path / "a.zip", [*good.items(), (entry, b"{}")]))
    assert "no archive of one adapter" in message
    assert "nothing was unpacked" in message


def test_a_link_in_an_adapter_is_not_packed(registry: AdapterRegistry, tmp_path: Path):
    (tmp_path / "secret").write_text("key", encoding="utf-8")
    report = registry.find("law") / "report.html"
    report.unlink(missing_ok=True)
    report.symlink_to(tmp_path / "secret")
    with pytest.raises(RefineError, match=r"report\.html is a link"):
        registry.pack("law", tmp_path / "law.zip")
    assert not (tmp_path / "law.zip").exists()


@pytest.mark.parametrize("name", ["heart/adapter_model.bin", "heart/data.pkl", "evil.pt", "heart/a/b.PTH", "x.npy"])
def test_pickles_are_refused_as_such(good, tmp_path: Path, name: str):
    message = refused(tmp_path, write(tmp_path / "a.zip", {**good, name: b"\x80\x04."}))
    assert "which could run code when it is loaded" in message


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_and_devices_are_refused(good, tmp_path: Path, kind: int):
    link = zipfile.ZipInfo("heart/card.json")
    link.external_attr = (kind | 0o777) << 16
    entries = [(name, content) for name, content in good.items() if name != "heart/card.json"]
    message = refused(tmp_path, write(tmp_path / "a.zip", [*entries, (link, b"/etc/passwd")]))
    assert "which is a link or a device" in message


def test_bombs_are_refused_unopened(good, tmp_path: Path):
    bomb = write(tmp_path / "a.zip", {**good, "heart/adapter_model.safetensors": b"\0" * (40 << 20)})
    assert bomb.stat().st_size < 100_000
    assert "bytes that would fill 41,943,040" in refused(tmp_path, bomb)
    assert "of 20,971,520 bytes" in refused(
        tmp_path, write(tmp_path / "b.zip", {**good, "heart/card.json": b" " * (20 << 20)})
    )


def central(content: bytearray, name: bytes) -> int:
    """Where the entry `name` begins in an archive's table of contents."""
    return content.rindex(name) - 46


@pytest.mark.parametrize(("offset", "value"), [(20, 1 << 30), (24, 1 << 10), (24, 1 << 21)])
def test_a_table_that_lies_about_sizes_is_found_out(good, tmp_path: Path, offset: int, value: int):
    archive = write(tmp_path / "a.zip", {**good, "heart/adapter_model.safetensors": b"\0" * (4 << 20)})
    content = bytearray(archive.read_bytes())
    at = central(content, b"heart/adapter_model.safetensors")
    assert content[at : at + 4] == b"PK\1\2"
    struct.pack_into("<I", content, at + offset, value)
    archive.write_bytes(content)
    refused(tmp_path, archive)


def test_other_containers_and_methods_are_refused(good, tmp_path: Path):
    assert "compressed by method 12" in refused(tmp_path, write(tmp_path / "a.zip", good, zipfile.ZIP_BZIP2))
    content = bytearray(write(tmp_path / "b.zip", good).read_bytes())
    content[central(content, b"heart/card.json") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(content)
    assert "'heart/card.json' encrypted" in refused(tmp_path, tmp_path / "b.zip")
    noted = zipfile.ZipInfo("heart/card.json")
    noted.comment = b"x"
    kept = [(name, content) for name, content in good.items() if name != "heart/card.json"]
    message = refused(tmp_path, write(tmp_path / "h.zip", [*kept, (noted, b"{}")]))
    assert "'heart/card.json' with notes of another program" in message
    (tmp_path / "c.zip").write_bytes(b"no zip")
    assert "is no zip archive that can be read" in refused(tmp_path, tmp_path / "c.zip")
    assert "can't be read: No such file" in refused(tmp_path, tmp_path / "none.zip")
    assert "can't be read: Is a directory" in refused(tmp_path, tmp_path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(tmp_path / "d.zip", [*good.items(), ("heart/card.json", b"{}")])
    assert "card.json twice" in refused(tmp_path, tmp_path / "d.zip")
    assert "found no adapter_config.json" in refused(
        tmp_path, write(tmp_path / "e.zip", {k: v for k, v in good.items() if not k.endswith("config.json")})
    )
    two = {name.replace("heart", "law") if "card" in name else name: content for name, content in good.items()}
    assert "found 2 adapters" in refused(tmp_path, write(tmp_path / "f.zip", two))
    assert "no adapter_model.safetensors and no adapter_config.json" in refused(tmp_path, write(tmp_path / "g.zip", {}))


def test_an_unsound_adapter_in_a_sound_archive_leaves_nothing(good, tmp_path: Path):
    config = json.loads(good["heart/adapter_config.json"])
    changed = {**good, "heart/adapter_config.json": json.dumps({**config, "r": 3}).encode()}
    message = refused(tmp_path, write(tmp_path / "a.zip", changed))
    assert message.startswith(f"{tmp_path}/a.zip/adapter_model.safetensors is not the LoRA adapter of rank 3")
    changed = {**good, "heart/adapter_config.json": json.dumps({**config, "lora_alpha": 4.0}).encode()}
    assert "was changed since it was written" in refused(tmp_path, write(tmp_path / "c.zip", changed))
    assert "card.json is broken" in refused(tmp_path, write(tmp_path / "b.zip", {**good, "heart/card.json": b"["}))
