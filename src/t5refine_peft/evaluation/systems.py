"""Whatever restores texts, made comparable: what did it put into each gap?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from t5refine_peft.corpus.pairs import SENTINEL
from t5refine_peft.errors import RefineError
from t5refine_peft.evaluation.questions import Question, QuestionSet
from t5refine_peft.evaluation.scores import Answers, Filling
from t5refine_peft.restoration.restorer import Restoration

System = Callable[[Sequence[str]], Sequence[str | Restoration]]
"""Takes texts with `<extra_id_0>`, `<extra_id_1>`, ... in them and gives, in order, the restored texts; or, as
`Restorer.restore` does, restorations with candidates and scores."""


def ask(questions: QuestionSet, system: System, *, name: str, batch_size: int = 64) -> Answers:
    """Ask a system all questions, `batch_size` at once.

    Raises:
        RefineError: it gives another number of texts than it was asked, or something that is no restored text.
    """
    answers: list[tuple[Filling, ...]] = []
    for at in range(0, len(questions.questions), batch_size):
        batch = questions.questions[at : at + batch_size]
        restored = system([question.text for question in batch])
        if len(restored) != len(batch):
            raise RefineError(f"the system {name!r} was asked {len(batch)} texts and gave back {len(restored)}")
        for question, given in zip(batch, restored, strict=True):
            answers += read_answer(question, given, name=name)
    return answers


def read_answer(question: Question, given: str | Restoration, *, name: str) -> list[tuple[Filling, ...]]:
    """The candidates for each gap of `question`; none for any gap where the answer is ill-formed.

    Of a bare text, a filling is what stands between the question's own visible parts. A text that has not all of these
    unchanged and in order, or still has a sentinel in it, is ill-formed.
    """
    nothing: list[tuple[Filling, ...]] = [() for _ in question.blanks]
    if isinstance(given, Restoration):
        if len(given.gaps) != len(question.blanks):
            return nothing
        return [tuple(Filling(c.text.strip(), c.score) for c in gap.candidates) for gap in given.gaps]
    if not isinstance(given, str):
        raise RefineError(
            f"the system {name!r} gave {type(given).__name__}: expected a restored text or a Restoration for each text"
        )
    # A filling brings its own spaces, so those beside a gap don't count as visible.
    visible = [re.escape(part.strip()) for part in SENTINEL.split(question.text)[::2]]
    match = re.fullmatch("(.*?)".join(visible), given.strip(), flags=re.DOTALL)
    if match is None or any(SENTINEL.search(filling) or not filling.strip() for filling in match.groups()):
        return nothing
    return [(Filling(filling.strip()),) for filling in match.groups()]
