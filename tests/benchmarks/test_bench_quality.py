"""Every arm of the comparison runs on a tiny model; the figures themselves come from the real runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, Glossary
from t5refine_peft.corpus.preparation import prepare_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_all_main_arms_run_and_a_second_call_does_nothing_again(tiny_base, corpus, terms, tmp_path, capsys):
    import bench_quality
    from quality_arms import MAIN

    domain = tmp_path / "data" / "xx_heart"
    domain.mkdir(parents=True)
    (domain / "corpus.txt").write_text(
        "\n".join(f"{text} [{n}]" for n in range(4) for text in corpus), encoding="utf-8"
    )
    (domain / "document_ids.txt").write_text("\n".join(str(n // 2) for n in range(160)))
    (domain / "terms.txt").write_text("\n".join(terms), encoding="utf-8")
    results = tmp_path / "results" / "quality.json"
    arguments = [
        "--domain", "xx_heart", "--data", str(tmp_path / "data"), "--base", str(tiny_base), "--device", "cpu",
        "--steps", "2", "--batch", "2", "--limit", "6", "--tokens", "48", "--candidates", "1",
        "--results", str(results),
    ]  # fmt: skip
    bench_quality.main(arguments)
    found = json.loads(results.read_text(encoding="utf-8"))
    assert {run["arm"] for run in found["runs"].values()} == {arm.name for arm in MAIN}
    gaps = len(found["domains"]["xx_heart"]["documents"])
    passages = {run["training"]["passages"] for run in found["runs"].values() if run["training"]}
    assert all(len(run["right"]) == gaps for run in found["runs"].values())
    assert passages == {4}
    table = results.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"| {arm.says} | 1 |" in table for arm in MAIN)

    written = results.stat().st_mtime_ns
    bench_quality.main(arguments)
    assert results.stat().st_mtime_ns == written
    bench_quality.main([*arguments, "--arm", "ours", "--seed", "1"])
    assert len(json.loads(results.read_text(encoding="utf-8"))["runs"]) == len(found["runs"]) + 1
    bench_quality.main(
        [*arguments[:-4], "--candidates", "1", "--results", str(results), "--limit", "5", "--arm", "base"]
    )
    assert len(json.loads(results.read_text(encoding="utf-8"))["runs"]) == 1  # the questions are others
    capsys.readouterr()


@pytest.fixture
def rows(vocabulary, corpus, terms):
    return prepare_rows(corpus, vocabulary=vocabulary, glossary=Glossary(terms))


def test_the_predecessors_mask_every_term_and_a_fifth_but_no_punctuation(vocabulary, rows):
    from predecessor import corrupt

    shares = []
    for number, row in enumerate(rows):
        ids = np.asarray(row["ids"], dtype=np.int32)
        example = corrupt(ids, row["term_spans"], vocabulary, np.random.default_rng(number))
        masked = np.zeros(len(ids), dtype=bool)
        for start, end in example.spans:
            masked[start:end] = True
        of_terms = np.zeros(len(ids), dtype=bool)
        for start, end, _ in row["term_spans"]:
            of_terms[start:end] = True
            assert masked[start:end].all()
        shares.append(masked.mean())
        alone = [span for span in example.spans if not of_terms[slice(*span)].any() and span[1] - span[0] < 2]
        assert all(any(map(str.isalnum, vocabulary.decode(ids[slice(*span)]))) for span in alone)
        between = [later[0] - earlier[1] for earlier, later in zip(example.spans, example.spans[1:], strict=False)]
        assert all(gap > 1 for gap in between)  # spans that touch, or nearly, are one
        assert vocabulary.decode(_filled(example, vocabulary)) == vocabulary.decode(ids)
    assert min(shares) >= 0.2


def _filled(example, vocabulary) -> list[int]:
    """The passage put together again from inputs and labels."""
    sentinels = set(vocabulary.sentinel_ids)
    parts: dict[int, list[int]] = {}
    for token in example.labels[:-1].tolist():
        if token in sentinels:
            current = parts.setdefault(token, [])
        else:
            current.append(token)
    return [piece for token in example.input_ids[:-1].tolist() for piece in parts.get(token, [token])]


def test_their_batches_have_one_width_and_count_padding(vocabulary, rows):
    from predecessor import PredecessorCollator, count_padding
    from t5refine_peft.corpus.collator import CorruptionDataset

    ours = DataCollatorForTermCorruption(vocabulary, CorruptionConfig())
    dataset = CorruptionDataset(rows, fresh=False)
    batch = PredecessorCollator(ours, tokens=64)([dataset[0], dataset[1]])
    assert batch["input_ids"].shape == (2, 64)
    assert batch["labels"].shape == (2, 32)
    counted = count_padding(batch, vocabulary.pad_id)["labels"]
    assert (batch["labels"] == -100).sum() == (counted == vocabulary.pad_id).sum() > 0
    assert not (counted == -100).any()


def test_the_frequency_baseline_takes_the_longest_context_it_has_seen(vocabulary):
    from frequency_baseline import FrequencyBaseline

    texts = ["takes furosemide for oedema", "takes bisoprolol for pain", "takes bisoprolol for pain", "a bisoprolol"]
    rows = prepare_rows(texts, vocabulary=vocabulary, glossary=Glossary(["furosemide", "bisoprolol"]))
    fill = FrequencyBaseline(rows, vocabulary)
    assert fill(["takes <extra_id_0> for oedema", "takes <extra_id_0> for pain", "unseen <extra_id_0> here"]) == [
        "takes furosemide for oedema", "takes bisoprolol for pain", "unseen bisoprolol here",
    ]  # fmt: skip


def test_nf4s_rounding_changes_every_matrix_a_little(base):
    import torch

    from quality_training import round_trip_nf4

    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    round_trip_nf4(base.model)
    for name, tensor in base.model.state_dict().items():
        if tensor.dim() == 2 and "relative_attention_bias" not in name:
            error = torch.linalg.norm(tensor - before[name]) / torch.linalg.norm(before[name])
            assert 0.05 < float(error) < 0.12, name  # 9.2% on Gaussian weights
