from __future__ import annotations

from pathlib import Path

import pytest

from t5refine_peft import Quantization, RefineError, RunConfig, TrainingConfig, load_config
from t5refine_peft.config_file.lines import key_lines

FAULTY = """
bse = "x"
rank = 3
domain = 3

[training]
learning_rte = 1
epochs = "many"
batch = -1
micro_batch = true
quantization = "fp4"
memory_bytes = "6 giants"
corruption = 3
metric = "bleu"
report_to = [
    1,
]
adapter.rank = 0
adapter.alpha = nan

[trainig]
x = 1
"""


def faults(text: str, where: Path) -> str:
    file = where / "run.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RefineError) as caught:
        load_config(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_all_faults_come_in_one_error_with_their_lines(tmp_path: Path):
    assert faults(FAULTY, tmp_path).split("; line ") == [
        "line 2: bse is not known; did you mean base?",
        "3: rank is not known; did you mean training.adapter.rank?",
        "4: domain must be text, found 3",
        "7: training.learning_rte is not known; did you mean training.learning_rate?",
        '8: training.epochs must be a number, found "many"',
        "9: training.batch must be above 0, found -1",
        "10: training.micro_batch must be a whole number, found true",
        "11: training.quantization can't be taken: no quantization 'fp4': expected none, int8 or nf4",
        "12: training.memory_bytes can't be taken: '6 giants' is no amount of memory: expected a number and a unit, "
        "such as 6GB or 5.5GiB",
        "13: training.corruption must be a table, [training.corruption]",
        '14: training.metric must be "loss" or "term_exact_match", found "bleu"',
        "15: training.report_to must be a list of text, found [1]",
        "18: training.adapter.rank must be at least 1, found 0",
        "19: training.adapter.alpha must be a number, found NaN",
        "21: trainig is not known; did you mean training?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training.corruption]\nmask_share = [0.1, 0.2, 0.3]", "or 2 numbers in brackets, found [0.1, 0.2, 0.3]"),
        ("[training.corruption]\nmask_share = [0.3, 0.2]", "line 2: training.corruption.mask_share must"),
        ("[training.quantization]\nhead = 'int4'", 'head must be "none" or "int8" or "nf4", found "int4"'),
        ("[training]\nmicro_batch = 3", "line 2: training.micro_batch must divide batch, found 3 and 16"),
        ("corpus = [1]", "corpus must be a list of paths, found [1]"),
        ("[training]\ncontext_tokens = -1", "line 2: training.context_tokens must be at least 0"),
        ("[training]\nmax_passage_tokens = 1\ncontext_tokens = 9", "line 3: training.context_tokens must be"),
        ("zzz = 1", "line 1: zzz is not known"),
        ("[training]\nvalidation_share = 0.5\ntest_share = 0.5", "validation_share and test_share must be above 0"),
    ],
)
def test_a_fault_says_what_was_expected(tmp_path: Path, text: str, message: str):
    assert message in faults(text, tmp_path)


def test_a_file_that_is_none_gets_one_sentence(tmp_path: Path):
    with pytest.raises(RefineError, match=r"none\.toml can't be read: No such file .*; `t5refine config --output"):
        load_config(tmp_path / "none.toml")
    file = tmp_path / "run.toml"
    file.write_text("domain = 'a'\ndomain = 'b'\n")
    with pytest.raises(RefineError, match=r"run\.toml is no TOML: Cannot overwrite a value \(at line 2, column 13\)"):
        load_config(file)
    file.write_bytes("domain = 'für'".encode("cp1252"))
    with pytest.raises(RefineError, match="is not UTF-8 at byte 11; save it as UTF-8"):
        load_config(file)


def test_values_are_taken_as_users_write_them(tmp_path: Path):
    file = tmp_path / "run.toml"
    text = (
        'corpus = "notes"\r\n[training]\r\nlearning_rate = 1\r\nmemory_bytes = "6GB"\r\nquantization = "nf4"\r\n'
        'report_to = "tensorboard"\r\ncorruption.mask_share = 0.15\r\n'
    )
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    run = load_config(file)
    training = run.training
    assert run.corpus == (tmp_path / "notes",)
    assert (training.learning_rate, type(training.learning_rate)) == (1.0, float)
    assert (training.memory_bytes, training.quantization) == (6 * 10**9, Quantization.nf4())
    assert (training.report_to, training.corruption.mask_share) == (("tensorboard",), 0.15)


def test_paths_are_relative_to_the_file_and_hub_ids_are_none(tmp_path: Path):
    (tmp_path / "models" / "own").mkdir(parents=True)
    file = tmp_path / "run.toml"

    def base(value: str) -> str:
        file.write_text(f'base = "{value}"')
        return load_config(file).base

    file.write_text('corpus = ["notes", "/texts"]\nterms = "../terms.txt"')
    run = load_config(file)
    assert run.corpus == (tmp_path / "notes", Path("/texts"))
    assert run.terms == tmp_path.parent / "terms.txt"
    assert (run.adapters_dir, run.runs_dir) == (tmp_path / "adapters", tmp_path / "runs")
    assert base("models/own") == str(tmp_path / "models" / "own")
    assert base("./gone") == str(tmp_path / "gone")
    assert base("google/mt5-base") == "google/mt5-base"
    assert base("builtin:mt5-mini") == "builtin:mt5-mini"


def test_an_empty_file_has_the_defaults_and_lacks_a_corpus(tmp_path: Path):
    (tmp_path / "run.toml").touch()
    run = load_config(tmp_path / "run.toml")
    assert run.training == TrainingConfig()
    assert (run.base, run.domain, run.report_examples) == (RunConfig().base, None, False)
    with pytest.raises(RefineError, match="lacks corpus and domain"):
        run.train_arguments()


def test_lines_are_those_on_which_keys_begin():
    text = 'a = """\n[b]\n"""\nb.c = [ # comment\n\n  1]\n\n[d."e f"]\ng = {h = 1, i = {j = 2}}\n[[k]]\nl = 1\n'
    lines = key_lines(text)
    assert {".".join(path): line for path, line in lines.items()} == {
        "a": 1, "b": 4, "b.c": 4, "d": 8, "d.e f": 8, "d.e f.g": 9, "d.e f.g.h": 9, "d.e f.g.i": 9, "d.e f.g.i.j": 9,
        "k": 10,
    }  # fmt: skip
