"""How a report is put together: what stands in front, what behind, and that nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import pack

wording = pack.module("unlearn.wording")
Warn = wording.Warn
SENTENCES = st.lists(st.text("ab -", min_size=1, max_size=200).map(str.strip), max_size=6)


def test_the_order_of_a_report():
    text = wording.compose(
        "Fox may come back.",
        [Warn("'fox' may show.", "30% left."), Warn("It moves.", "By 20%.")],
        ["Try: raise 'drift' of ScaPre Solve to 0.2.", "Next: connect it."],
        ["rank 4\nresidual 1e-3"],
    )
    assert text.splitlines() == [
        "Fox may come back.",
        "WARNING: 'fox' may show.",
        "WARNING: It moves.",
        "Try: raise 'drift' of ScaPre Solve to 0.2.",
        "",
        "Details:",
        "30% left.",
        "By 20%.",
        "Next: connect it.",
        "rank 4",
        "residual 1e-3",
    ]
    assert not wording.forbidden(text)
    assert wording.compose("Saved.") == "Saved."


def test_more_than_two_warnings_are_counted_and_kept():
    text = wording.compose("No.", [Warn(f"number {i}", f"reason {i}") for i in range(5)])
    front = wording.front(text).splitlines()
    assert front == [
        "No.",
        "WARNING: number 0",
        "WARNING: number 1 (3 more in the details.)",
    ]
    assert all(f"number {i}" in text and f"reason {i}" in text for i in range(5))
    assert wording.read(text).warnings == (
        "number 0",
        "number 1",
        *(f"number {i} reason {i}" for i in range(2, 5)),
    )


@given(st.text("ab -", min_size=1, max_size=400), SENTENCES, SENTENCES, SENTENCES)
def test_at_most_sixty_words_stand_in_front_and_nothing_is_lost(verdict, warned, advice, details):
    verdict = verdict.strip() or "x"
    text = wording.compose(verdict, [Warn(w or "w", "why") for w in warned], advice, details)
    assert wording.count(wording.front(text)) <= wording.MOST_WORDS
    assert len(wording.face(text).splitlines()) <= wording.LINES_ON_A_NODE
    joined = " ".join(text.split())
    for part in (verdict, *warned, *advice, *details):
        assert " ".join(part.split()) in joined


def test_names_of_a_long_list_are_cut():
    assert wording.names(["fox"]) == "fox"
    assert wording.names(["fox", "cat", "fox"]) == "fox and cat"
    assert wording.names(["fox", "cat", "dog"]) == "fox, cat and dog"
    assert wording.names(["fox", "cat", "dog"], joined=", ") == "fox, cat, dog"
    assert wording.names("abcde", quotes=True) == "'a', 'b' and 3 others"
    assert wording.name("a photo of a street in the rain") == "a photo of a..."
    assert wording.name("x" * 40) == "x" * 28 + "..."
    assert wording.sentence("fox gone") == "Fox gone."


@pytest.mark.parametrize(
    "text, found",
    [
        ("Forgets it in 8 layers, rank 4.", ["layers", "rank"]),
        ("It gave up 0.0e+00 of the change.", ["0.0e+00"]),
        ("Pushed past zero.", ["Pushed past zero"]),
        ("A low-rank residual in keys and values.", ["low-rank", "residual", "keys and values"]),
        ("Informax, eigenvalues, Spectral sigma", ["Informax", "eigenvalues", "Spectral", "sigma"]),
        ("a -> b", [">"]),
        ("NaN in fp32", ["NaN", "fp32"]),
        ("Try: raise 'drift' of ScaPre Solve to 0.2, as in 'fox -> animal'.", []),
        ("Frank ranked 3 players; 20% left.", []),
        ("Fox gone.\n\nDetails:\nrank 4, 0.0e+00", []),
    ],
)
def test_words_that_an_artist_need_not_know(text, found):
    assert wording.forbidden(text) == found


def test_a_node_shows_what_is_in_front():
    text = wording.compose("Gone.", [Warn("a"), Warn("b")], ["Next: go."], ["rank"])
    assert wording.face(text) == "Gone.\nWARNING: a\nWARNING: b\nNext: go."
    assert wording.headline(text) == "Gone.\nWARNING: a\nWARNING: b"
