"""The glossary's terms as paths of tokens, to restrict or bias what is decoded."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.tokenization import Vocabulary


class TrieNode:
    """A beginning of some terms: what may follow, and the term that it is as a whole, as the list writes it."""

    __slots__ = ("children", "term")

    def __init__(self) -> None:
        self.children: dict[int, TrieNode] = {}
        self.term: str | None = None


class TermTrie:
    """Terms by their tokens, looked up by what they begin with.

    >>> trie = TermTrie([([5, 6], "heart"), ([5, 7, 8], "hearing")])
    >>> sorted(trie.node([5]).children), trie.node([5]).term, trie.node([5, 6]).term, trie.node([6])
    ([6, 7], None, 'heart', None)
    """

    def __init__(self, terms: Iterable[tuple[Sequence[int], str]]) -> None:
        self._root = TrieNode()
        self.depth = 0
        """Tokens of the longest."""
        for tokens, term in terms:
            node = self._root
            for token in tokens:
                node = node.children.setdefault(token, TrieNode())
            if node is not self._root:
                node.term = node.term or term  # of two spellings that the vocabulary can't tell apart, the first
            self.depth = max(self.depth, len(tokens))

    @classmethod
    def of_terms(cls, glossary: Glossary, vocabulary: Vocabulary, *, characters: int | None = None) -> TermTrie:
        """The terms as a model may answer them: with the word mark or without, as listed or with a capital in front.

        Args:
            glossary: the terms.
            vocabulary: the base's.
            characters: only terms of so many characters.
        """
        terms = []
        for term in glossary.terms:
            for form in (term, *_capitalized(term)):
                for encode in (vocabulary.encode, vocabulary.encode_continuation):
                    ids = encode(form).ids.tolist()
                    if vocabulary.unk_id not in ids and characters in (None, len(form)):
                        terms.append((ids, form))
        return cls(terms)

    def __bool__(self) -> bool:
        return bool(self._root.children)

    def node(self, tokens: Sequence[int]) -> TrieNode | None:
        """Where `tokens` lead; None where no term begins with them."""
        node: TrieNode | None = self._root
        for token in tokens:
            node = node.children.get(token) if node is not None else None
        return node


def _capitalized(term: str) -> list[str]:
    """The term as it begins a sentence, where its first letter has a capital that is one letter too."""
    first = term[0]
    capital = first.upper()
    plain = unicodedata.normalize("NFKC", first) == first and len(capital) == 1  # neither a ligature nor a full width
    return [capital + term[1:]] if plain and capital != first else []
