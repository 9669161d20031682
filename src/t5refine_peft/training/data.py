"""What an adapter is trained on: a corpus that is prepared now, or a dataset that was."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import DatasetDict

from t5refine_peft.config import CorruptionConfig, TrainingConfig
from t5refine_peft.corpus.documents import SPLITS
from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.preparation import prepare_corpus
from t5refine_peft.corpus.prepared import Prepared, is_prepared, load_prepared
from t5refine_peft.corpus.reading import Corpus, corpus_paths
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The splits, and what they were made with.

    Attributes:
        splits: `train`, `validation` and `test`; see `prepare_dataset`.
        glossary_fingerprint: of the terms that were found in them; None without.
        config: the configuration, with the lengths that the passages have.
    """

    splits: DatasetDict
    glossary_fingerprint: str | None
    config: TrainingConfig


def training_data(
    corpus: Corpus | DatasetDict,
    *,
    vocabulary: Vocabulary,
    glossary: Glossary | None,
    config: TrainingConfig,
    cache_dir: str | Path | None = None,
) -> TrainingData:
    """Open `corpus` if it is prepared, else prepare it.

    Args:
        corpus: see `train_adapter`.
        vocabulary: the base model's.
        glossary: the domain's terms; with a directory that was prepared, None takes those that it was prepared with,
            all with the weight 1.
        config: gives the options of preparing.
        cache_dir: see `prepare_corpus`.

    Raises:
        RefineError: see `prepare_corpus`; or a dataset that was prepared for another tokenizer or term list, or lacks
            a split.
    """
    fingerprint = glossary.fingerprint if glossary else None
    if isinstance(corpus, DatasetDict):
        missing = set(SPLITS) - set(corpus)
        if missing:
            raise RefineError(f"the prepared dataset lacks the splits {sorted(missing)}: make it with prepare_dataset")
        return TrainingData(corpus, fingerprint, config)
    directory = _prepared_directory(corpus)
    if directory is None:
        prepared = prepare_corpus(
            corpus,
            vocabulary=vocabulary,
            glossary=glossary,
            max_tokens=config.max_passage_tokens,
            context_tokens=config.context_tokens,
            validation_share=config.validation_share,
            test_share=config.test_share,
            seed=config.seed,
            cache_dir=cache_dir,
        )
        for message in prepared.summary.notices():
            logger.warning("%s", message)
    else:
        prepared = load_prepared(directory)
        _check_fit(prepared, vocabulary, fingerprint)
    summary = prepared.summary
    config = replace(config, max_passage_tokens=summary.max_tokens, context_tokens=summary.context_tokens)
    return TrainingData(prepared.splits, summary.glossary_fingerprint, config)


def longest_passage(corpus: Corpus | DatasetDict, config: TrainingConfig) -> tuple[int, int]:
    """How many input and label tokens the longest passages take.

    The label tokens of a passage whose masks are drawn are half as many as its own, or what `mask_share` asks for with
    its sentinels where that is more; those of a written pair are as they were written.

    Args:
        corpus: see `train_adapter`. Where it is not prepared yet, passages are as long as `config` lets them be.
        config: gives that length, and the corruption.

    Raises:
        RefineError: see `load_prepared`; or a dataset that `prepare_dataset` did not make.
    """
    if not isinstance(corpus, DatasetDict):
        directory = _prepared_directory(corpus)
        if directory is None:
            return config.max_passage_tokens, _most_labels(config.max_passage_tokens - 1, config.corruption)
        corpus = load_prepared(directory).splits
    inputs = labels = 1
    for rows in corpus.values():
        if not {"length", "masked"} <= set(rows.column_names):
            raise RefineError("the dataset lacks the columns of a prepared one: make it with prepare_dataset")
        columns = rows.select_columns(["length", "masked"]).with_format("arrow")
        for table in columns.iter(batch_size=10_000):
            lengths, drawn = table["length"].to_numpy(), table["masked"].is_null().to_numpy()
            inputs = max(inputs, int(lengths.max()) + 1)  # the end mark
            if drawn.any():
                labels = max(labels, _most_labels(int(lengths[drawn].max()), config.corruption))
            for spans in table["masked"].drop_null().to_pylist():
                labels = max(labels, sum(end - start + 1 for start, end in spans) + 1)
    return inputs, labels


def _most_labels(tokens: int, corruption: CorruptionConfig) -> int:
    """Label tokens that a drawn mask of a passage takes at most, a few short passages with long terms apart."""
    shares = corruption.mask_share if isinstance(corruption.mask_share, tuple) else (corruption.mask_share,)
    masked = math.ceil(max(shares) * tokens)
    sentinels = math.ceil(masked / corruption.mean_span_tokens)
    return min(corruption.max_label_tokens, max(tokens // 2, masked + sentinels) + 1)


def _prepared_directory(corpus: Corpus) -> Path | None:
    """The prepared dataset's directory that `corpus` is.

    Raises:
        RefineError: it is one among other paths.
    """
    paths = corpus_paths(corpus) or []
    prepared = [path for path in paths if is_prepared(path)]
    if prepared and len(paths) > 1:
        raise RefineError(
            f"{prepared[0]} is a prepared dataset, and is trained on alone; found {len(paths) - 1} more paths: prepare "
            "all texts together"
        )
    return prepared[0] if prepared else None


def _check_fit(prepared: Prepared, vocabulary: Vocabulary, glossary_fingerprint: str | None) -> None:
    summary = prepared.summary
    if summary.vocabulary_fingerprint != vocabulary.fingerprint:
        raise RefineError(
            f"{prepared.directory} was prepared for another tokenizer ({summary.vocabulary_fingerprint}, not the "
            f"base's {vocabulary.fingerprint}); prepare the corpus anew for this base"
        )
    if glossary_fingerprint not in (None, summary.glossary_fingerprint):
        raise RefineError(
            f"{prepared.directory} was prepared with another term list ({summary.glossary_fingerprint or 'none'}, "
            f"while this one is {glossary_fingerprint}); prepare the corpus anew with these terms, or give none to "
            "take those"
        )
