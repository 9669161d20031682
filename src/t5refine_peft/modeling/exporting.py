"""A model for CTranslate2, in int8, and the proof that it says what ours says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.errors import RefineError
from t5refine_peft.modeling.base import Base, load_base
from t5refine_peft.modeling.probe import TEXTS, Question, ask, log_probabilities, of_answers
from t5refine_peft.storage import atomic_directory, free_path

PARITY_FILE = "parity.json"
MOST_MEAN_DIFFERENCE, MOST_MEAN_LOG_DIFFERENCE = 0.02, 0.5
"""An export whose probabilities differ by more on average is not written. On the built-in base int8 gives 0.006 and
0.06 nats, logits of a wrong scale 0.26 and 5.7."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """By how much the exported model's probabilities of the probe's answers differ from those of its source in fp32."""

    tokens: int
    mean_difference: float
    """Of the probabilities, from 0 to 1, of all tokens of the answers."""
    largest_difference: float
    mean_log_difference: float
    """Of the log-probabilities, in nats."""


def export_ctranslate2(
    model: str | Path, output: str | Path, *, quantization: str = "int8", texts: Sequence[str] = TEXTS
) -> Parity:
    """Write a model for CTranslate2 and compare its probabilities with the source's, token by token.

    CTranslate2's own converter scales a T5's logits wherever `tie_word_embeddings` is set, which `MT5Config` sets
    whatever the file says; here the flag is what is true of the weights. Its vocabulary is SentencePiece's pieces by
    their ids, so that a text is encoded as it is for training.

    Args:
        model: a directory that `load_base` reads, such as one of `merge_adapter`.
        output: the directory to write, which must not be there yet.
        quantization: CTranslate2's name of the weights' type: `int8`, `int16`, `float16`, `bfloat16`, `float32`.
        texts: what the probabilities are compared on.

    Raises:
        RefineError: CTranslate2 is not installed, the model can't be converted, or its probabilities differ.
    """
    target = check_export(output)
    import ctranslate2
    from ctranslate2.converters import transformers as loaders

    base = load_base(model, device="cpu", precision="float32")
    questions = ask(base.model, base, texts)
    if not questions:
        raise RefineError("the probabilities can't be compared: expected texts of at least ten tokens")
    loader = {"t5": loaders.T5Loader, "mt5": loaders.MT5Loader, "umt5": loaders.UMT5Loader}[
        base.model.config.model_type
    ]()
    ours = of_answers(log_probabilities(base.model, base, questions), questions)
    pieces = _pieces(base)
    with atomic_directory(target) as staged:
        try:
            spec = loader.get_model_spec(base.model)
            loader.set_vocabulary(spec, pieces)
            _name_special(spec.config, base, pieces)
            spec.validate()
            spec.optimize(quantization=quantization)  # it scales the model's own weights in place: of no use hereafter
            spec.save(str(staged))
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise RefineError(f"{model} can't be converted for CTranslate2: {error}") from error
        translator = ctranslate2.Translator(str(staged), device="cpu", compute_type="default")
        parity = _compare(translator, pieces, questions, ours)
        if not (
            parity.mean_difference <= MOST_MEAN_DIFFERENCE and parity.mean_log_difference <= MOST_MEAN_LOG_DIFFERENCE
        ):
            raise RefineError(
                f"the exported model's probabilities differ from those of {model} by {parity.mean_difference:.3f} "
                f"({parity.mean_log_difference:.2f} nats) on average, expected at most {MOST_MEAN_DIFFERENCE} "
                f"({MOST_MEAN_LOG_DIFFERENCE}); nothing was written, use the merged model itself"
            )
        (staged / PARITY_FILE).write_text(json.dumps(asdict(parity), indent=2) + "\n", encoding="utf-8")
    return parity


def check_export(output: str | Path) -> Path:
    """See that `export_ctranslate2` could write to `output`, before hours are spent on what it is to be given.

    Raises:
        RefineError: CTranslate2 is not installed, or something lies at `output`.
    """
    if find_spec("ctranslate2") is None:
        raise RefineError("CTranslate2 is not installed: install the extra with `pip install 't5refine-peft[export]'`")
    return free_path(output)


def _pieces(base: Base) -> list[str]:
    """A name for each row of the embedding, by id."""
    rows = base.model.get_input_embeddings().num_embeddings
    pieces = base.vocabulary.pieces()
    return pieces + [f"<unused_{number}>" for number in range(len(pieces), rows)]


def _name_special(config: object, base: Base, pieces: Sequence[str]) -> None:
    """Tell CTranslate2 the special pieces; decoding begins with padding, as T5 was trained."""
    vocabulary: Vocabulary = base.vocabulary
    for attribute, token in (
        ("bos_token", vocabulary.pad_id),
        ("eos_token", vocabulary.eos_id),
        ("unk_token", vocabulary.unk_id),
        ("decoder_start_token", base.model.config.decoder_start_token_id),
    ):
        setattr(config, attribute, pieces[token])


def _compare(translator: Any, pieces: Sequence[str], questions: Sequence[Question], ours: np.ndarray) -> Parity:
    scored = translator.score_batch(
        [[pieces[token] for token in question.input_ids] for question in questions],
        [[pieces[token] for token in question.labels] for question in questions],
    )
    # CTranslate2 puts an end mark of its own behind each answer; what it thinks of that is left out.
    theirs = [score.log_probs[: len(question.labels)] for score, question in zip(scored, questions, strict=True)]
    found = np.concatenate(theirs).astype(np.float32)
    difference = np.abs(np.exp(ours) - np.exp(found))
    return Parity(
        tokens=len(ours),
        mean_difference=float(difference.mean()),
        largest_difference=float(difference.max()),
        mean_log_difference=float(np.abs(ours - found).mean()),
    )
