from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from t5refine_peft import CorruptionConfig, DataCollatorForTermCorruption, Glossary, prepare_dataset
from t5refine_peft.corpus.collator import CorruptionDataset


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


def test_workers_that_outlive_an_epoch_see_the_next_and_give_the_same(vocabulary, corpus, terms):
    dataset = CorruptionDataset(rows(vocabulary, corpus, terms), fresh=True)
    collator = DataCollatorForTermCorruption(vocabulary, CorruptionConfig())
    loader = DataLoader(dataset, batch_size=8, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        seen = [batch["labels"] for batch in loader]
        own = [
            collator([dataset[n] for n in range(at, min(at + 8, len(dataset)))])["labels"]
            for at in range(0, len(dataset), 8)
        ]
        assert all(torch.equal(a, b) for a, b in zip(seen, own, strict=True))
