from __future__ import annotations

from t5refine_peft.demo.run import run_demo


def test_each_adapter_restores_its_domains_terms_and_not_the_others():
    result = run_demo()
    assert result.seconds < 180
    for name, domain in result.domains.items():
        assert domain.adapter_term_exact_match >= domain.base_term_exact_match + 0.30, name
        assert domain.other_adapter_term_exact_match <= domain.base_term_exact_match + 0.10, name
        assert domain.adapter_bytes <= 2_000_000, name
    for example in result.examples:
        assert all(len(filled) == len(example.truth) for filled in example.fillings.values())
