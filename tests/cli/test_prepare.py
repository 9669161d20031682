from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from t5refine_peft import RefineError, TrainingConfig, train_adapter
from t5refine_peft.cli.app import app
from t5refine_peft.corpus.pairs import join_pair
from t5refine_peft.corpus.prepared import load_prepared


@pytest.fixture
def prepare(tiny_base: Path, tmp_path: Path, corpus, terms):
    """Call the verb on a corpus and a term list; give its standard output and standard error."""
    (tmp_path / "corpus.txt").write_text("\n".join([*corpus, corpus[0]]), encoding="utf-8")
    (tmp_path / "terms.txt").write_text("\n".join([*terms, "heart", "digitalis㐀", "furosemide"]), encoding="utf-8")
    (tmp_path / "notes.txt").write_bytes(
        ("Der Kläger trägt die Kosten für Verfahren über Verträge. " * 3).encode("cp1252")
    )

    def call(*arguments: str) -> tuple[str, str]:
        options = ["--base", str(tiny_base), "--cache-dir", str(tmp_path / "cache"), "--processes", "1"]
        result = CliRunner().invoke(app, ["prepare", *map(str, arguments), *options])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout, result.stderr

    return call


def test_the_audit_tells_of_corpus_and_glossary(prepare, tmp_path):
    files = [tmp_path / "corpus.txt", tmp_path / "notes.txt", "--terms", tmp_path / "terms.txt"]
    text, errors = prepare(*files)
    assert f"{tmp_path / 'notes.txt'} is not UTF-8: read as cp1252" in errors
    assert "1 documents equal an earlier one: left out" in errors
    assert "6 of 8 terms occur" in text
    assert "never seen: digitalis㐀" in text
    assert "only within longer terms: heart (in heart failure)" in text
    assert "characters outside the vocabulary, spelled in bytes: digitalis㐀" in text
    assert "listed twice: furosemide" in text
    told = json.loads(prepare(*files, "--json")[0])
    assert told["summary"]["duplicates"] == 1
    assert sum(told["summary"]["documents"].values()) == 41 - told["summary"]["near_duplicates"]
    assert told["audit"]["unseen"] == ["digitalis㐀"]
    assert told["audit"]["counts"]["furosemide"] > 0
    assert told["examples"] == []
    assert Path(told["directory"]).is_dir()


def test_output_is_a_dataset_that_trains(prepare, tmp_path, tiny_base):
    text, _ = prepare(tmp_path / "corpus.txt", "--terms", tmp_path / "terms.txt", "--output", tmp_path / "prepared")
    assert text.startswith(f"dataset: {tmp_path / 'prepared'}\n")
    assert len(load_prepared(tmp_path / "prepared").splits["train"]) > 10
    result = train_adapter(
        tmp_path / "prepared",
        domain="heart",
        base=tiny_base,
        adapters_dir=tmp_path / "adapters",
        runs_dir=tmp_path / "runs",
        config=TrainingConfig(max_steps=1, device="cpu", precision="float32"),
    )
    assert result.steps == 1


def test_passages_are_shown_with_masks_and_terms_marked(prepare, tmp_path, corpus):
    files = [tmp_path / "corpus.txt", "--terms", tmp_path / "terms.txt", "--show", "5"]
    examples = json.loads(prepare(*files, "--json")[0])["examples"]
    assert len(examples) == 5
    text, _ = prepare(*files)
    for example in examples:
        assert f"\n{example['document']}: {example['masked_tokens']} of {example['tokens']} tokens masked\n" in text
        assert example["text"] in text
        bare = example["text"].replace("[", "").replace("]", "").replace("*", "")
        assert "".join(bare.split()) in {"".join(document.split()) for document in _normalised(corpus)}
        assert example["text"].count("[") == example["inputs"].count("<extra_id_") > 0
    assert any("*" in example["text"] for example in examples)


def _normalised(corpus: list[str]) -> list[str]:
    import unicodedata

    return [unicodedata.normalize("NFKC", text) for text in corpus]


def test_exported_pairs_are_the_predecessors_format_and_prepare_as_they_are(prepare, tmp_path):
    files = [tmp_path / "corpus.txt", "--terms", tmp_path / "terms.txt", "--export", "jsonl", "--output"]
    _, errors = prepare(*files, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert f"{len(rows)} pairs of inputs and targets in {tmp_path / 'out.jsonl'}" in errors
    assert {tuple(row) for row in rows} == {("inputs", "targets")}
    prepare(*files, tmp_path / "folder")
    names = [path.name for path in sorted((tmp_path / "folder").iterdir())]
    assert names == ["test.jsonl", "train.jsonl", "valid.jsonl"]
    parts = [(tmp_path / "folder" / name).read_text("utf-8").splitlines() for name in reversed(names)]
    assert sorted(map(json.dumps, rows)) == sorted(json.dumps(json.loads(line)) for part in parts for line in part)

    told = json.loads(prepare(tmp_path / "folder", "--keep-near-duplicates", "--json")[0])
    splits = load_prepared(Path(told["directory"])).splits
    assert told["summary"]["messages"] == []
    assert [len(splits[name]) for name in ("validation", "train", "test")] == [len(part) for part in parts]
    assert all(row["masked"] for row in splits["train"])


def test_passages_that_spell_a_sentinel_are_left_out_of_pairs_and_counted(prepare, tmp_path):
    texts = [f"The patient {n} takes <extra_id_0> furosemide for <extra_id_7> failure. " * 4 for n in range(5)]
    (tmp_path / "spelled.txt").write_text("\n".join(texts), encoding="utf-8")
    files = [tmp_path / "corpus.txt", tmp_path / "spelled.txt", "--unit", "line", "--keep-near-duplicates"]
    _, errors = prepare(*files, "--export", "jsonl", "--output", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "5 passages left out: their text spells <extra_id_N> itself" in errors
    assert len(rows) == 40
    for row in rows:
        join_pair(row["inputs"], row["targets"])


def test_suggested_terms_are_a_list_to_edit(prepare, tmp_path):
    text, _ = prepare(tmp_path / "corpus.txt", "--suggest-terms", "--limit", "3")
    assert 1 <= len(text.splitlines()) <= 3
    _, errors = prepare(tmp_path / "corpus.txt", "--suggest-terms", "--limit", "3", "--output", tmp_path / "new.txt")
    assert (tmp_path / "new.txt").read_text(encoding="utf-8") == text
    assert "strike out what is no term" in errors
    known = json.loads(
        prepare(tmp_path / "corpus.txt", "--suggest-terms", "--terms", tmp_path / "new.txt", "--json")[0]
    )
    assert not {one["text"] for one in known} & set(text.splitlines())
    with pytest.raises(RefineError, match="is there already, and may be edited"):
        prepare(tmp_path / "corpus.txt", "--suggest-terms", "--output", tmp_path / "new.txt")


def test_export_without_output_is_wrong_usage(tmp_path):
    result = CliRunner().invoke(app, ["prepare", str(tmp_path), "--base", "builtin:mt5-mini", "--export", "jsonl"])
    assert result.exit_code == 2
    assert "--export needs --output" in result.output
