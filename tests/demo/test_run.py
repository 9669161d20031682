from __future__ import annotations

import pytest
from browser import lay_out

from t5refine_peft.demo.run import DemoResult, run_demo
from t5refine_peft.evaluation.metrics import is_exact


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def result(adapters) -> DemoResult:
    return run_demo(adapters_dir=adapters)


def test_each_adapter_restores_more_of_its_domains_terms_than_the_base_and_the_other_adapter(result):
    assert result.seconds < 180
    for name, domain in result.domains.items():
        assert domain.adapter_term_exact_match >= domain.base_term_exact_match + 0.3, name
        assert domain.other_adapter_term_exact_match < domain.base_term_exact_match + 0.05, name
        assert domain.adapter_bytes <= 2_000_000, name
    for (name, _), example in zip(result.domains.items(), result.examples, strict=True):
        assert all(len(filled) == len(example.truth) for filled in example.fillings.values())
        assert any(map(is_exact, example.truth, example.fillings[name]))


@pytest.mark.parametrize("width", [400, 1200])
def test_both_reports_open_in_a_browser_and_nothing_overflows(result, adapters, tmp_path, width):
    for name in result.domains:
        page = (adapters / name / "report.html").read_text(encoding="utf-8")
        layout = lay_out(page, width=width, scratch=tmp_path)
        assert layout.overflowing == [], name
        assert layout.console == [], name
        assert layout.figures >= 6, name
