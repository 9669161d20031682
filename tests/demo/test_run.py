from __future__ import annotations

from t5refine_peft.demo.run import run_demo


def test_each_adapter_restores_more_of_its_domains_terms_than_the_base_and_the_other_adapter():
    result = run_demo()
    assert result.seconds < 180
    for name, domain in result.domains.items():
        assert domain.adapter_term_exact_match > domain.base_term_exact_match, name
        assert domain.adapter_term_exact_match > domain.other_adapter_term_exact_match, name
        assert domain.adapter_bytes <= 2_000_000, name
    for example in result.examples:
        assert all(len(filled) == len(example.truth) for filled in example.fillings.values())
