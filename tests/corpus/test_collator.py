from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Seq2SeqTrainingArguments

from t5refine_peft import (
    CorruptionConfig,
    DataCollatorForTermCorruption,
    Glossary,
    RefineError,
    prepare_dataset,
)
from t5refine_peft.corpus.collator import CorruptionDataset
from t5refine_peft.corpus.term_lists import Term


def rows(vocabulary, corpus, terms):
    return prepare_dataset(corpus, vocabulary=vocabulary, glossary=Glossary(terms))["train"]


def test_a_batch_has_the_documented_shapes(vocabulary, corpus, terms):
    dataset = CorruptionDataset(rows(vocabulary, corpus, terms), fresh=True)
    batch = DataCollatorForTermCorruption(vocabulary, CorruptionConfig())([dataset[n] for n in range(5)])
    assert {name: tensor.shape[0] for name, tensor in batch.items()} == dict.fromkeys(batch, 5)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["labels"].shape == batch["term_mask"].shape
    assert all(tensor.shape[1] % 8 == 0 and tensor.is_contiguous() for tensor in batch.values())
    assert (batch["input_ids"][batch["attention_mask"] == 0] == vocabulary.pad_id).all()
    padding = (batch["labels"] == vocabulary.eos_id).cumsum(1).cummax(1).values.roll(1, 1)
    padding[:, 0] = 0
    assert (batch["labels"][padding > 0] == -100).all()
    assert not (batch["labels"] == vocabulary.pad_id).any()
    assert batch["term_mask"].any()


def test_masks_are_fresh_each_epoch_in_training_and_fixed_in_evaluation(vocabulary, corpus, terms):
    collator = DataCollatorForTermCorruption(vocabulary, CorruptionConfig())
    for fresh in (True, False):
        dataset = CorruptionDataset(rows(vocabulary, corpus, terms), fresh=fresh)
        epochs = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            epochs.append([collator.example(dataset[n]).spans for n in range(len(dataset))])
        assert (epochs[0] != epochs[1]) == fresh


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_outlive_an_epoch_see_the_next_and_give_the_same(vocabulary, corpus, terms, workers):
    dataset = CorruptionDataset(rows(vocabulary, corpus, terms), fresh=True)
    collator = DataCollatorForTermCorruption(vocabulary, CorruptionConfig())
    loader = DataLoader(dataset, batch_size=8, collate_fn=collator, num_workers=workers, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        seen = [batch["labels"] for batch in loader]
        own = [
            collator([dataset[n] for n in range(at, min(at + 8, len(dataset)))])["labels"]
            for at in range(0, len(dataset), 8)
        ]
        assert all(torch.equal(a, b) for a, b in zip(seen, own, strict=True))


def test_an_item_is_the_row_that_it_was_read_from(vocabulary, corpus, terms):
    split = prepare_dataset(corpus, vocabulary=vocabulary, glossary=Glossary(terms), max_tokens=24, context_tokens=6)
    dataset = CorruptionDataset(split["train"].select(range(2, 12)), fresh=True)
    items = dataset.__getitems__([7, 0, 3])
    assert [item.index for item in items] == [7, 0, 3]
    for item in items:
        row = split["train"][2 + item.index]
        assert item.ids.tolist() == row["ids"]
        assert item.word_starts.tolist() == row["word_starts"]
        assert [list(span) for span in item.term_spans] == row["term_spans"]
        assert item.context_tokens == row["context_tokens"]
    assert any(item.context_tokens for item in items)
    assert dataset[-1].index == 9
    with pytest.raises(IndexError):
        dataset[10]


def test_a_term_of_weight_0_is_never_chosen(vocabulary, corpus):
    glossary = Glossary([Term("furosemide", weight=0.0), Term("标的物")])
    dataset = CorruptionDataset(prepare_dataset(corpus, vocabulary=vocabulary, glossary=glossary)["train"], fresh=True)
    collator = DataCollatorForTermCorruption(
        vocabulary, CorruptionConfig(term_probability=1.0, random_only=0.0), term_weights=glossary.weights
    )
    chosen = {term for n in range(len(dataset)) for _, _, term in collator.example(dataset[n]).terms}
    assert chosen == {1}


def test_rows_without_an_epoch_are_refused(vocabulary, corpus, terms):
    collator = DataCollatorForTermCorruption(vocabulary, CorruptionConfig())
    with pytest.raises(RefineError, match=r"found dict; wrap the split: CorruptionDataset\(rows, fresh=True\)"):
        collator([rows(vocabulary, corpus, terms)[0]])


def test_a_plain_trainer_trains_with_its_defaults_and_fresh_masks(
    vocabulary, corpus, terms, tiny_base: Path, tmp_path: Path
):
    splits = prepare_dataset(corpus, vocabulary=vocabulary, glossary=Glossary(terms))
    seen: list[tuple[int, int]] = []

    class Recording(DataCollatorForTermCorruption):
        def __call__(self, items):
            seen.extend((item.epoch, item.index) for item in items)
            return super().__call__(items)

    trainer = Seq2SeqTrainer(
        model=AutoModelForSeq2SeqLM.from_pretrained(tiny_base),
        args=Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=CorruptionDataset(splits["train"], fresh=True),
        eval_dataset=CorruptionDataset(splits["validation"], fresh=False),
        data_collator=Recording(vocabulary, CorruptionConfig()),
    )
    before = trainer.evaluate()["eval_loss"]
    assert {epoch for epoch, _ in seen} == {0}
    seen.clear()
    trainer.train()
    count = len(splits["train"])
    assert sorted(seen) == [(epoch, index) for epoch in range(2) for index in range(count)]
    seen.clear()
    assert trainer.evaluate()["eval_loss"] < before
    assert {epoch for epoch, _ in seen} == {0}
