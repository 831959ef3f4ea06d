from hypothesis import example, given
from hypothesis import strategies as st

from gatekeeper_grpc.domain.text_search import TextSearch

# Few letters, so that texts overlap; of one, two and four bytes.
letters = st.text(alphabet="abé😀", max_size=6)


@given(st.frozensets(letters, max_size=12), st.text(alphabet="abé😀", max_size=40))
@example(frozenset({"", "a", "aa", "ba", "aab"}), "aaab")
@example(frozenset({"abab", "bab", "ab"}), "ababab")
def test_one_pass_finds_exactly_the_texts_that_occur(texts: frozenset[str], text: str) -> None:
    assert TextSearch(texts).found_in(text) == {sought for sought in texts if sought in text}


def test_a_search_for_nothing_finds_nothing() -> None:
    assert TextSearch().found_in("anything") == frozenset()
