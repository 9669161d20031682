"""The audit of a glossary by the corpus that was prepared with it, made once and kept beside the dataset."""

from __future__ import annotations

import json
from dataclasses import asdict

from t5refine_peft.corpus.documents import Unit
from t5refine_peft.corpus.glossary import Glossary, GlossaryAudit
from t5refine_peft.corpus.prepared import Prepared
from t5refine_peft.corpus.reading import Corpus
from t5refine_peft.corpus.tokenization import Vocabulary
from t5refine_peft.storage import atomic_file

AUDIT_FILE = "audit.json"


def audit_prepared(
    prepared: Prepared,
    corpus: Corpus,
    glossary: Glossary,
    *,
    vocabulary: Vocabulary,
    field: str = "text",
    unit: Unit | None = None,
) -> GlossaryAudit:
    """`Glossary.audit`, or what it found when it was called for this dataset before.

    Args:
        prepared: the dataset that `corpus` was prepared into, with this glossary.
        corpus: read again in the first call; see `read_documents`, as for `field` and `unit`.
        glossary: the terms.
        vocabulary: the base model's.
    """
    path = prepared.directory / AUDIT_FILE
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        return GlossaryAudit(
            documents=told["documents"],
            counts=told["counts"],
            unseen=tuple(told["unseen"]),
            shadowed={term: tuple(others) for term, others in told["shadowed"].items()},
            too_long=told["too_long"],
            uncovered=told["uncovered"],
            repeated=glossary.repeated,  # repeating a term changes nothing of what is prepared
        )
    audit = glossary.audit(corpus, vocabulary=vocabulary, field=field, unit=unit)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(audit), ensure_ascii=False), encoding="utf-8")
    return audit
