"""The glossary's terms as paths of tokens, to restrict or bias what is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from t5refine_peft.corpus.glossary import Glossary
from t5refine_peft.corpus.tokenization import Vocabulary


class TrieNode:
    """A beginning of some terms: what may follow, and whether it is a whole term itself."""

    __slots__ = ("children", "ends")

    def __init__(self) -> None:
        self.children: dict[int, TrieNode] = {}
        self.ends = False


class TermTrie:
    """Token sequences, looked up by what they begin with.

    >>> trie = TermTrie([[5, 6], [5, 7, 8]])
    >>> sorted(trie.node([5]).children), trie.node([5]).ends, trie.node([5, 6]).ends, trie.node([6])
    ([6, 7], False, True, None)
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._root = TrieNode()
        self.depth = 0
        """Tokens of the longest."""
        for sequence in sequences:
            node = self._root
            for token in sequence:
                node = node.children.setdefault(token, TrieNode())
            node.ends = node is not self._root
            self.depth = max(self.depth, len(sequence))

    @classmethod
    def of_terms(cls, glossary: Glossary, vocabulary: Vocabulary, *, characters: int | None = None) -> TermTrie:
        """The terms as a model may answer them: with the word mark or without, as listed or with a capital in front.

        Args:
            glossary: the terms.
            vocabulary: the base's.
            characters: only terms of so many characters, as they are decoded.
        """
        sequences = []
        for term in glossary.terms:
            for form in dict.fromkeys((term, term[0].upper() + term[1:])):
                for encode in (vocabulary.encode, vocabulary.encode_continuation):
                    ids = encode(form).ids.tolist()
                    fits = characters is None or len(vocabulary.decode(ids).strip()) == characters
                    if fits and vocabulary.unk_id not in ids:
                        sequences.append(ids)
        return cls(sequences)

    def __bool__(self) -> bool:
        return bool(self._root.children)

    def node(self, tokens: Sequence[int]) -> TrieNode | None:
        """Where `tokens` lead; None where no term begins with them."""
        node: TrieNode | None = self._root
        for token in tokens:
            node = node.children.get(token) if node is not None else None
        return node
