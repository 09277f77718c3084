"""BM25: what is found, and in which order."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from remit.tools.ranking import SNIPPET_CHARS, document, rank, snippet, terms_of


def ranked(texts: dict[str, str], query: str) -> list[str]:
    terms = terms_of(query)
    return [hit.name for hit in rank([document(n, t, terms) for n, t in texts.items()], terms)]


def test_only_documents_with_a_term_are_found() -> None:
    texts = {"one": "the budget of march", "two": "nothing to see", "three": "Budget! BUDGET."}
    assert set(ranked(texts, "budget")) == {"one", "three"}
    assert ranked(texts, "absent") == []
    assert rank([], ["x"]) == []


def test_a_rare_term_weighs_more_than_a_common_one() -> None:
    texts = {f"common{n}": "report report" for n in range(9)} | {"rare": "walrus report"}
    assert ranked(texts, "report walrus")[0] == "rare"


def test_a_short_document_beats_a_long_one_with_as_many_hits() -> None:
    texts = {"long": "walrus " + "filler " * 200, "short": "walrus"}
    assert ranked(texts, "walrus") == ["short", "long"]


def test_the_name_counts() -> None:
    assert ranked({"march_report.md": "figures", "other.md": "figures"}, "march") == [
        "march_report.md"
    ]


def test_equal_scores_are_ordered_by_name() -> None:
    assert ranked({"b": "same", "a": "same", "c": "same"}, "same") == ["a", "b", "c"]


def test_the_score_is_that_of_the_formula() -> None:
    terms = ["walrus"]
    documents = [document("d", "walrus walrus seal", terms), document("e", "seal", terms)]
    (hit,) = rank(documents, terms)
    lengths = [4, 2]  # the words of a name count
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * lengths[0] / (sum(lengths) / 2))
    assert math.isclose(hit.score, idf * 2 * 2.2 / (2 + norm))


def test_a_snippet_is_the_line_with_the_most_terms() -> None:
    text = "walrus\n\n  the walrus and the carpenter  \ncarpenter"
    found = snippet(text, terms_of("carpenter walrus"))
    assert (found.line, found.text) == (3, "the walrus and the carpenter")


def test_a_snippet_of_a_document_found_by_name_is_its_first_text() -> None:
    found = snippet("\n\nhello", ["absent"])
    assert (found.line, found.text) == (3, "hello")
    assert snippet("", ["absent"]).text == ""


def test_a_long_line_is_cut_around_the_first_term_and_says_so() -> None:
    found = snippet("x " * 500 + "walrus" + " y" * 500, ["walrus"])
    assert "walrus" in found.text
    assert found.text.startswith("\u2026")
    assert found.text.endswith("\u2026")
    assert len(found.text) == SNIPPET_CHARS + 2


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=200), max_size=8),
    st.text(max_size=30),
)
def test_hits_are_documents_with_a_term_the_best_first(texts: dict[str, str], query: str) -> None:
    terms = terms_of(query)
    documents = [document(name, text, terms) for name, text in texts.items()]
    hits = rank(documents, terms)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.name for hit in hits} == {d.name for d in documents if d.frequencies}
    assert all(hit.score > 0 for hit in hits)


@given(st.text(max_size=400), st.lists(st.text(max_size=5), max_size=3))
def test_a_snippet_is_a_part_of_its_line(text: str, terms: list[str]) -> None:
    found = snippet(text, terms)
    lines = text.splitlines() or [""]
    assert found.text.strip("\u2026").strip() in lines[found.line - 1]
