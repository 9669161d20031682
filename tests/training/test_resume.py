from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import pytest
from runs import AtEvent, kill_in_evaluation, kill_in_flush, kill_in_step, run_and_kill, same, train_tiny, weights

from t5refine_peft import AdapterConfig, Glossary, Quantization, RefineError, load_base
from t5refine_peft.corpus.preparation import prepare_dataset
from t5refine_peft.corpus.term_lists import Term
from t5refine_peft.training import train
from t5refine_peft.training.checkpoints import RunDirectory, RunIdentity, fingerprint_splits

HANDLER = signal.getsignal(signal.SIGINT)
"""What Ctrl+C does where no training is; a run in the background ignores it."""


@pytest.fixture(scope="module")
def whole(tiny_base, corpus, terms, tmp_path_factory):
    """The run that was never cut."""
    where = tmp_path_factory.mktemp("whole")
    return where, train_tiny(tiny_base, corpus, terms, where)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("kill", "number"),
    [
        (kill_in_step, 8),
        (kill_in_evaluation, 2),  # the second evaluation: after a checkpoint that no evaluation belongs to
        (kill_in_flush, 19),  # within the third checkpoint
    ],
    ids=["step", "evaluation", "save"],
)
def test_a_killed_run_resumes_to_the_same_adapter(whole, tiny_base, corpus, terms, tmp_path, kill, number):
    where, uncut = whole
    assert run_and_kill((kill, number), tiny_base, corpus, terms, tmp_path) == -signal.SIGKILL
    assert not (tmp_path / "adapters" / "heart").exists()
    resumed = train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert same(weights(where), weights(tmp_path))
    assert (uncut.best_step, uncut.steps, uncut.tokens) == (resumed.best_step, resumed.steps, resumed.tokens)
    assert uncut.adapter_scores == resumed.adapter_scores
    for report in (uncut.path, resumed.path):
        assert (report / "report.html").read_bytes() == (uncut.path / "report.html").read_bytes()
    left = [path.name for path in (tmp_path / "runs" / "heart").iterdir() if path.name.startswith(".")]
    assert left == []


def test_an_interrupted_run_resumes_to_the_same_adapter(whole, tiny_base, corpus, terms, tmp_path):
    where, _ = whole
    interrupt = AtEvent("on_substep_end", 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as raised:
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[interrupt])
    assert "interrupted after step 7 of 12" in str(raised.value)
    assert "checkpoint-7 is complete" in str(raised.value)
    assert str(raised.value).endswith("; go on with train_adapter(..., resume=True)")
    assert signal.getsignal(signal.SIGINT) is HANDLER
    train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert same(weights(where), weights(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_before_and_after_training_says_how_to_go_on(
    whole, tiny_base, corpus, terms, tmp_path, monkeypatch, number
):
    where, _ = whole
    former = signal.getsignal(number)

    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(train, "answer_terms", interrupted)  # the base's answers
        with pytest.raises(KeyboardInterrupt, match="before training began, so there is nothing to save"):
            train_tiny(tiny_base, corpus, terms, tmp_path)
    shutil.copytree(where / "runs", tmp_path / "runs", dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(train, "measure_confidence", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"before the trained adapter .* go on with train_adapter"):
            train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert signal.getsignal(number) is former
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == []


def test_a_run_whose_training_had_ended_is_not_trained_further(whole, tiny_base, corpus, terms, tmp_path):
    where, uncut = whole
    shutil.copytree(where / "runs", tmp_path / "runs")
    again = train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert same(weights(where), weights(tmp_path))
    assert (again.steps, again.best_step, again.tokens) == (uncut.steps, uncut.best_step, uncut.tokens)

    early = {"config": {"threshold": 9.0, "start_step": 0.0, "patience": 1, "window": 1}}
    stopped = train_tiny(tiny_base, corpus, terms, tmp_path, domain="early", **early)
    assert stopped.steps == 12
    early["config"]["window"] = 0
    stopped = train_tiny(tiny_base, corpus, terms, tmp_path, domain="early", **early)
    assert stopped.steps == 8
    shutil.rmtree(stopped.path)
    again = train_tiny(tiny_base, corpus, terms, tmp_path, domain="early", resume=True, **early)
    assert (again.steps, again.stopped_because) == (8, "loss no longer got better")


def test_a_run_that_had_no_checkpoint_yet_begins_again(whole, tiny_base, corpus, terms, tmp_path):
    where, _ = whole
    with pytest.raises(ZeroDivisionError):
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[AtEvent("on_step_end", 1, lambda: 1 // 0)])
    train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert same(weights(where), weights(tmp_path))


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("trainer_state.json", True),
        ("trainer_state.json", False),
        ("optimizer.pt", True),
        ("rng_state.pth", True),
        ("adapter_model.safetensors", False),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    whole, tiny_base, corpus, terms, tmp_path, caplog, name, gone
):
    where, _ = whole
    cut = [AtEvent("on_step_end", 7, lambda: 1 // 0)]
    with pytest.raises(ZeroDivisionError):
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=cut)
    file = tmp_path / "runs" / "heart" / "checkpoint-6" / name
    content = file.read_bytes()
    if gone:
        file.unlink()
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)
    assert ("checkpoint-6 is damaged: going on from before it" in caplog.text) != (
        gone and name == "trainer_state.json"
    )
    assert same(weights(where), weights(tmp_path))


def test_a_damaged_best_checkpoint_is_told_before_the_work_and_not_after_it(tiny_base, corpus, terms, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train_tiny(tiny_base, corpus, terms, tmp_path, callbacks=[AtEvent("on_step_end", 7, lambda: 1 // 0)])
    (tmp_path / "runs" / "heart" / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(RefineError, match="checkpoint-4, the best so far, is damaged or gone; train without resuming"):
        train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)


def test_the_newest_and_the_best_are_kept_even_beside_a_damaged_later_one(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (3, 4, 5, 6, 9):
        with run.write(step) as staged:
            (staged / "trainer_state.json").write_text('{"best_global_step": 3}')
    run.keep_only(2, newest=6, best=3)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-3", "checkpoint-6"]


def test_a_base_that_was_loaded_with_another_quantization_is_refused(whole, tiny_base, corpus, terms, tmp_path):
    shutil.copytree(whole[0] / "runs", tmp_path / "runs")
    base = load_base(tiny_base, device="cpu", precision="float32", quantization=Quantization.nf4())
    with pytest.raises(RefineError, match=r"quantization\.linear was 'none' and is now 'nf4'"):
        train_tiny(base, corpus, terms, tmp_path, resume=True)


def test_a_run_may_be_moved_and_goes_on_elsewhere(whole, tiny_base, corpus, terms, tmp_path):
    where, _ = whole
    interrupt = AtEvent("on_step_end", 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_base, corpus, terms, tmp_path / "here", callbacks=[interrupt])
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "runs").rename(tmp_path / "there" / "runs")
    train_tiny(tiny_base, corpus, terms, tmp_path / "there", resume=True)
    assert same(weights(where), weights(tmp_path / "there"))


def test_a_new_run_moves_the_earlier_one_aside(whole, tiny_base, corpus, terms, tmp_path):
    where, _ = whole
    shutil.copytree(where / "runs", tmp_path / "runs")
    train_tiny(tiny_base, corpus, terms, tmp_path, config={"max_steps": 2, "eval_steps": 2})
    assert [path.name for path in (tmp_path / "runs" / "heart").glob("checkpoint-*")] == ["checkpoint-2"]
    assert (tmp_path / "runs" / ".heart.previous" / "checkpoint-12" / "optimizer.pt").is_file()


def changed(options: dict[str, object]) -> dict[str, object]:
    return {"config": options}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": ["One more document on furosemide and heart failure."]}, "the corpus has changed"),
        ({"terms": ["pulse"]}, "the glossary has changed"),
        (changed({"learning_rate": 1e-3}), "learning_rate was 0.01 and is now 0.001"),
        (changed({"adapter": AdapterConfig(rank=8, dropout=0.1)}), "adapter.rank was 4 and is now 8"),
        (changed({"seed": 1}), "the corpus has changed .*; the glossary has changed .*; seed was 0 and is now 1"),
    ],
)
def test_another_run_is_refused_with_the_reason(whole, tiny_base, corpus, terms, tmp_path, change, message):
    shutil.copytree(whole[0] / "runs", tmp_path / "runs")
    corpus, terms = corpus + change.pop("corpus", []), terms + change.pop("terms", [])
    with pytest.raises(RefineError, match=f"can't be resumed: {message}.*; put it back, or train without resuming"):
        train_tiny(tiny_base, corpus, terms, tmp_path, resume=True, **change)
    assert not list((tmp_path / "adapters").rglob("*.safetensors"))


def test_another_base_is_refused(whole, tiny_base, corpus, terms, tmp_path):
    import torch
    from transformers import MT5ForConditionalGeneration

    shutil.copytree(whole[0] / "runs", tmp_path / "runs")
    shutil.copytree(tiny_base, tmp_path / "base")
    model = MT5ForConditionalGeneration.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.q.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(RefineError, match="the base has changed since the run was started"):
        train_tiny(tmp_path / "base", corpus, terms, tmp_path, resume=True)


def test_a_base_with_another_configuration_is_refused(whole, tiny_base, corpus, terms, tmp_path):
    """Its dropout is not among its weights."""
    shutil.copytree(whole[0] / "runs", tmp_path / "runs")
    shutil.copytree(tiny_base, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dropout_rate": 0.3}))
    with pytest.raises(RefineError, match="the base has changed since the run was started"):
        train_tiny(tmp_path / "base", corpus, terms, tmp_path, resume=True)


def test_another_weight_of_a_term_is_refused(whole, tiny_base, corpus, terms, tmp_path):
    shutil.copytree(whole[0] / "runs", tmp_path / "runs")
    weighted = Glossary([Term(terms[0], weight=3.0), *terms[1:]])
    with pytest.raises(RefineError, match="the glossary has changed since the run was started"):
        train_tiny(tiny_base, corpus, weighted, tmp_path, resume=True)


def test_what_has_no_bearing_on_the_adapter_is_not_recorded(whole):
    record = json.loads((whole[0] / "runs" / "heart" / "run.json").read_text())
    assert "device" in record["config"]
    assert not {"memory_bytes", "report_to", "save_steps"} & record["config"].keys()


@pytest.mark.parametrize("listed", ["", "{", "{}", "[]", "null", '{"optimizer.pt": "0"}', "\0\0\0"])
def test_a_checkpoint_without_its_list_of_files_is_damaged(tmp_path, caplog, listed):
    run = RunDirectory(tmp_path)
    identity = RunIdentity(corpus="c", glossary=None, base="b", tokenizer="t", config={})
    run.start(identity)
    for step in (3, 6):
        with run.write(step) as staged:
            (staged / "trainer_state.json").write_text('{"best_global_step": 3}')
            (staged / "optimizer.pt").write_bytes(b"weights")
    (tmp_path / "checkpoint-6" / "fingerprints.json").write_text(listed)
    assert run.resume(identity) == tmp_path / "checkpoint-3"
    assert "checkpoint-6 is damaged: going on from before it" in caplog.text


@pytest.mark.parametrize("held", ["{", "[]", "null", "{}", '{"config": null}', "\0"])
def test_a_record_that_is_broken_is_told(tmp_path, held):
    (tmp_path / "run.json").write_text(held)
    with pytest.raises(RefineError, match=r"run\.json is broken; train without resuming"):
        RunDirectory(tmp_path).resume(RunIdentity(corpus="c", glossary=None, base="b", tokenizer="t", config={}))


def test_nothing_to_resume_is_told(tiny_base, corpus, terms, tmp_path):
    with pytest.raises(RefineError, match=r"nothing to resume: .* holds no run"):
        train_tiny(tiny_base, corpus, terms, tmp_path, resume=True)


def test_a_record_that_cant_be_read_is_told(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(RefineError, match=r"run\.json can't be read: .*; see to it and resume"):
        RunDirectory(tmp_path).resume(RunIdentity(corpus="c", glossary=None, base="b", tokenizer="t", config={}))


def test_the_fingerprint_is_of_values(vocabulary, corpus, terms, tmp_path):
    def prepared(texts: list[str], glossary: list[str]):
        return prepare_dataset(texts, vocabulary=vocabulary, glossary=Glossary(glossary))

    splits = prepared(corpus, terms)
    tokens, spans = fingerprint_splits(splits)
    splits.save_to_disk(tmp_path)
    assert fingerprint_splits(type(splits).load_from_disk(tmp_path)) == (tokens, spans)
    assert fingerprint_splits(prepared(corpus, terms[:2])) == (
        tokens,
        fingerprint_splits(prepared(corpus, terms[:2]))[1],
    )
    assert fingerprint_splits(prepared(corpus, terms[:2]))[1] != spans
    assert fingerprint_splits(prepared([*corpus, "furosemide it is"], terms))[0] != tokens


@pytest.mark.parametrize("change", [{"masked": [[0, 2]]}, {"context_tokens": 1}])
def test_the_fingerprint_knows_written_masks_and_context(vocabulary, corpus, terms, change):
    splits = prepare_dataset(corpus, vocabulary=vocabulary, glossary=Glossary(terms))
    other = type(splits)({name: rows.map(lambda _: change, features=rows.features) for name, rows in splits.items()})
    assert fingerprint_splits(other)[0] != fingerprint_splits(splits)[0]
    assert fingerprint_splits(other)[1] == fingerprint_splits(splits)[1]
