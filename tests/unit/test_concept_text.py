"""The artist's list: read, refused with one sentence, and written back."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from testbed import pack

text = pack.module("unlearn.concepts.notation")
pasted = pack.module("unlearn.concepts.pasted")
sentences = pack.module("unlearn.concepts.sentences")
types = pack.module("unlearn.types")
UnlearnError = pack.module("unlearn.errors").UnlearnError


def test_a_line_in_full():
    line = "style:  van   gogh -> painting | vincent, v. gogh * 2.5"
    assert text.parse_concept(line) == types.Concept(
        "van gogh", "style", "painting", ("vincent", "v. gogh"), 2.5
    )


def test_lines_are_split_once_for_all_inputs():
    """Comments are lines of their own here: a template may begin with a hash."""
    given = "  a {concept} \n\n\t\r\n# b\u2028c"
    assert text.split_lines(given) == ("a {concept}", "# b", "c")
    assert text.without_comments(given) == ("a {concept}", "c")
    assert text.split_lines("") == text.without_comments("\n# a") == ()


def test_arrow_and_bar_in_either_order():
    assert text.parse_concept("cat | kitten -> animal") == text.parse_concept(
        "cat -> animal | kitten"
    )


def test_comments_and_blank_lines_are_skipped():
    found = text.parse("# mine\n\n cat \n", "\n# none\n dog ")
    assert [c.name for c in found.concepts] == ["cat"] and found.keep == ("dog",)


@pytest.mark.parametrize(
    "forget, keep, says",
    [
        ("", "", "empty"),
        ("  \n# cat\n", "", "empty"),
        ("cat", "Cat", "keep list"),
        ("cat | kitten", "kitten", "keep list"),
        ("cat\nCAT -> animal", "", "'CAT' stands twice"),
        ("cat | kitten\nkitten", "", "'kitten' stands twice"),
        ("a\nb\nc\na * 2\nstyle: b", "", "'a', 'b' stand twice"),
        ("a\nb | c", "A\nc", "'a', 'c' are in the forget list and in the keep list"),
        ("-> animal", "", "no concept"),
        ("cat ->", "", "nothing behind"),
        ("cat * 0", "", "weight"),
        ("cat * 1000", "", "weight"),
        ("c" * 401, "", "401 letters long"),
        ("cat", "d" * 401, "at most 400"),
        ("cat -> ani\x07mal", "", "'ani?mal' holds control characters"),
    ],
)
def test_bad_lists_get_one_sentence(forget, keep, says):
    with pytest.raises(UnlearnError) as error:
        text.parse(forget, keep)
    assert says in str(error.value) and "\n" not in str(error.value)


word = st.text(
    st.characters(
        codec="utf-8",
        exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs"),
        exclude_characters="|,*#>:",
    ),
    min_size=1,
    max_size=12,
)
name = (
    st.lists(word, min_size=1, max_size=3)
    .map(" ".join)
    .filter(lambda s: s == text.clean(s) and "->" not in s)
)
concept = st.builds(
    types.Concept,
    name,
    st.sampled_from(types.KINDS),
    st.one_of(st.just(""), name),
    st.lists(name, max_size=3).map(tuple),
    st.floats(0.01, 100, allow_nan=False),
)


@given(concept)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_concept_survives_the_round_trip(c):
    assert text.parse_concept(text.format_concept(c)) == c


@given(concept)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_concept_that_was_written_down_reads_alike_when_pasted(c):
    assume(c.superclass.casefold() not in pasted._NOTHING)  # such a line is refused
    found = text.parse(text.format_concept(c))
    double = len({name.casefold() for name in c.names}) < len(c.names)
    assert double or found.concepts == (c,), text.format_concept(c)


def test_what_stands_twice_with_one_meaning_is_dropped_with_a_note():
    found = text.parse(
        "cat -> animal | kitten\nfox\nCat -> Animal | kitten\nFOX\ndog | dog", "a\na"
    )
    assert [c.name for c in found.concepts] == ["cat", "fox", "dog"] and found.keep == ("a",)
    assert found.concepts[2].aliases == ()
    assert found.notes == ("'Cat', 'FOX', 'dog' stood in the list more than once.",)
    assert text.merge(found, text.parse("fox")).concepts == found.concepts


def test_a_set_survives_the_round_trip():
    first = text.parse("cat -> animal | kitten\nstyle: monet * 0.5\nexplicit: naked", "dog\nhouse")
    assert text.parse(*text.format_set(first)) == first


def test_merging_checks_both():
    with pytest.raises(UnlearnError, match="keep list"):
        text.merge(text.parse("cat"), text.parse("dog", "cat"))
    both = text.merge(text.parse("cat", "a\nb"), text.parse("dog", "b\nc"))
    assert [c.name for c in both.concepts] == ["cat", "dog"] and both.keep == ("a", "b", "c")


def test_words_that_a_picture_can_show_are_common_words_and_no_others():
    """A forecast names them alone; nobody could look for 'the' or 'very' in a picture."""
    pictured = sentences.pictured_words()
    assert pictured <= set(sentences.prior_words()) and 500 < len(pictured) < 900
    assert {"wolf", "church", "red", "snow", "police"} <= pictured
    assert pictured.isdisjoint({"the", "very", "when", "best", "february", "give", "economic"})
