"""Lists as people paste them: read as meant, or refused in a sentence that shows how to write it.

None is taken silently for a name that it is not.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed import pack

text, types = pack.module("unlearn.concepts.notation"), pack.module("unlearn.types")
pasted = pack.module("unlearn.concepts.pasted")
lists = pack.module("unlearn.concepts.lists")
UnlearnError = pack.module("unlearn.errors").UnlearnError

FOX, HOUSE = "object: fox", "object: house"
BOTH = f"{FOX}\n{HOUSE}"
FOX_ANIMAL = "object: fox -> animal"
# What is pasted, and the list as it is understood. Names are never changed without a note.
READ = {
    "fox\nhouse": BOTH,
    "fox, house": BOTH,
    "fox; house": BOTH,
    "fox,house,": BOTH,
    "fox, house, and cat.": f"{BOTH}\nobject: cat",
    "fox\uff0chouse\u3001cat\uff1bdog": f"{BOTH}\nobject: cat\nobject: dog",
    "1. fox\n2. house": BOTH,
    "1) fox\n2) house": BOTH,
    "(1) fox\n(2) house": BOTH,
    "1 fox\n2 house": BOTH,
    "1.\tfox\n2.\thouse": BOTH,
    "1. fox, 2. house": BOTH,
    "1) fox, 2) house": BOTH,
    "a) fox\nb) house": BOTH,
    "- fox\n- house": BOTH,
    "* fox\n* house": BOTH,
    "+ fox\n\u2013 house": BOTH,
    "\u2022 fox\n\u2022house": BOTH,
    "- [ ] fox\n- [x] house": BOTH,
    "> fox": FOX,
    "**fox**": FOX,
    "`fox`": FOX,
    '"fox"': FOX,
    "'fox'": FOX,
    '- "fox"\n2. "house"': BOTH,
    "1. 'fox', 2. 'house'": BOTH,
    "\u201cfox\u201d": FOX,
    "\u2018fox\u2019": FOX,
    "\u00abfox\u00bb, \u300chouse\u300d": BOTH,
    "(fox)": FOX,
    "(fox:1.3)": FOX,
    "((fox))": FOX,
    "((fox:1.2):1.1)": FOX,
    "(fox, house:1.2)": BOTH,
    "(fox:1.3), (house:0.8)": BOTH,
    "fox:1.3": FOX,
    "red (fox:1.3)": "object: red fox",
    "[fox]": FOX,
    "{fox|house}": BOTH,
    "{fox|house} -> animal": "object: fox -> animal\nobject: house -> animal",
    "fox <lora:fox_v1:0.8>": FOX,
    "fox => animal": FOX_ANIMAL,
    "fox \u2192 animal": FOX_ANIMAL,
    "fox --> animal": FOX_ANIMAL,
    "fox \u2014> animal": FOX_ANIMAL,
    "fox -> (animal:1.1)": FOX_ANIMAL,
    "fox -> animal, house -> building": "object: fox -> animal\nobject: house -> building",
    "fox -> animal; house -> building": "object: fox -> animal\nobject: house -> building",
    "fox # the animal": FOX,
    "fox // the animal": FOX,
    "fox.": FOX,
    "fox...": FOX,
    "keep: house\nfox": f"{FOX}\nkeep: house",
    "keep: house, cat\nfox": f"{FOX}\nkeep: house\nkeep: cat",
    "artist: monet": "style: monet",
    "style: monet, van gogh": "style: monet\nstyle: van gogh",
    "character:miku": "object: miku",
    "forget: fox, house": BOTH,
    "fox BREAK house": BOTH,
    "fox AND house": BOTH,
    '["fox", "house"]': BOTH,
    "['fox', 'house']": BOTH,
    '[\n  "fox",\n  "house"\n]': BOTH,
    "<ul><li>fox</li><li>house</li></ul>": BOTH,
    "<b>fox</b><br>house": BOTH,
    "embedding:scary": "object: embedding:scary",
    "(embedding:scary:1.2)": "object: embedding:scary",
    "miku (vocaloid)": "object: miku (vocaloid)",
    "miku \\(vocaloid\\)": "object: miku (vocaloid)",
    "miku (vocaloid), fox": f"object: miku (vocaloid)\n{FOX}",
    '"Paris, France" -> city': 'object: "Paris, France" -> city',
    '"Paris, France", fox': f'object: "Paris, France"\n{FOX}',
    "fox -> animal | vixen, vulpes * 2": "object: fox -> animal | vixen, vulpes * 2.0",
    "fox | vixen | vulpes": "object: fox | vixen, vulpes",
    "fox | vixen -> animal": "object: fox -> animal | vixen",
    "fox * 2, house": "object: fox * 2.0\nobject: house",
    "Nier: Automata": 'object: "Nier: Automata"',
    "o'keeffe": "object: o'keeffe",
    "fox and house": 'object: fox and house',
    "apollo 11 rocket\nfox": "object: apollo 11 rocket\nobject: fox",
    "area 51\n7 dwarfs": 'object: area 51\nobject: "7 dwarfs"',
    "50 cent": 'object: "50 cent"',
    "\U0001f98a": 'object: "\U0001f98a"',
}  # fmt: skip
# What is pasted, and a part of the sentence that refuses it.
REFUSED = {
    "__animal__": "wildcard",
    "<lora:fox_v1:0.8>": "names no concept",
    "BREAK": "the forget list is empty",
    "fox, wolf -> animal": "a line of its own: 'fox', 'wolf -> animal'",
    "fox -> animal, house": "a line of its own: 'fox -> animal', 'house'",
    "fox -> animal | vixen, house -> building": "each on a line of its own",
    "fox | vixen; house": "';' behind '|'",
    "animal: fox": "write 'fox' alone",
    "keep:\nfox": "'keep: fox'",
    "[fox:house:0.5]": "one name per line",
    "[fox|house]": "one name per line",
    "a {red|blue} fox": "braces",
    '{"fox": "animal"}': "braces",
    "fox\thouse": "a tab",
    "fox\\nhouse": "a backslash",
    "fox*2": "'fox * 2'",
    "fox::2": "'fox * 2'",
    "fox * two": "'fox * 2'",
    "fox = animal": "'fox -> animal'",
    "fox > animal": "'fox -> animal'",
    "fox - animal": "'fox -> animal'",
    "fox -> animal -> thing": "two arrows",
    "fox -> nothing": "write 'fox' alone",
    "fox + house": "one name per line",
    "fox / house": "one name per line",
    "1. fox 2. house": "one name per line",
    "--no fox": "options",
    "https://example.org/fox": "web address",
    "(fox": "without its partner",
    "fox)": "without its partner",
    '"fox': "without its partner",
    "fox#animal": "'#'",
    "fox, house, etc.": "leave it out",
    "| fox | animal |": "names no concept",
    "???": "names no concept",
}


@pytest.mark.parametrize("said", READ)
def test_a_pasted_list_is_read_as_meant(said):
    found = text.parse(said)
    listed = [line for line in text.understood(found).splitlines() if not line.startswith("#")]
    assert "\n".join(listed) == READ[said]
    assert text.parse(*text.format_set(found)) == found == text.parse(text.understood(found))
    again = [text.parse_concept(line) for line in map(text.format_concept, found.concepts)]
    assert again == list(found.concepts)


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_line_as_it_should_be(said):
    with pytest.raises(UnlearnError) as error:
        text.parse(said)
    shown = str(error.value)
    assert REFUSED[said].casefold() in shown.casefold() and "\n" not in shown
    if said != "BREAK":
        assert shown.count("; ") >= 1, "it does not say what to do"


def test_there_are_many_of_them():
    assert len(READ) >= 60 and len(REFUSED) >= 30


def test_no_reading_is_silent():
    """Where a line is not the name itself, a note says how it was read; long lists get few."""
    for said in READ:
        found = text.parse(said)
        names = [c.name for c in found.concepts]
        if "\n" not in said and len(names) == 1 and names[0] != said and "->" not in said:
            simple = text.parse_concept(said) == found.concepts[0]
            assert simple or found.notes or said[0] in "\u201c\u00ab", said
    many = text.parse("\n".join(f"- name {chr(97 + i)}" for i in range(26)))
    assert len(many.notes) == 7 and many.notes[-1] == "... and 20 more lines alike."


@pytest.mark.parametrize(
    "said, keep",
    [
        ("fox, house", ("fox", "house")),
        ("1. fox\n2. house", ("fox", "house")),
        ("- fox\n* house", ("fox", "house")),
        ('"Paris, France"', ("Paris, France",)),
        ("(fox:1.2); [house]", ("fox", "house")),
        ("keep: fox", ("fox",)),
        ("style: monet", ("monet",)),
        ("fox # remark", ("fox",)),
        ("fox | house", ("fox", "house")),
        ("miku \\(vocaloid\\)", ("miku (vocaloid)",)),
        ("a man with a hat, sharp focus, at night", ("a man with a hat, sharp focus, at night",)),
        ("A dog runs in the park.", ("A dog runs in the park.",)),
    ],
)
def test_the_keep_list_is_read_alike(said, keep):
    found = text.parse("cat", said)
    assert found.keep == keep and text.parse(*text.format_set(found)) == found
    assert text.parse(text.understood(found)) == found


@pytest.mark.parametrize("said", ["fox -> animal", "fox * 2", "animal: fox", "__x__", "{a", ":"])
def test_the_keep_list_refuses_alike(said):
    with pytest.raises(UnlearnError, match="keep line"):
        text.parse("cat", said)


@pytest.mark.parametrize(
    "line, concept",
    [
        ("object: fox, house -> building", types.Concept("fox, house", "object", "building")),
        ("object: (fox:1.3)", types.Concept("(fox:1.3)")),
        ("style: nier: automata", types.Concept("nier: automata", "style")),
        ("object: miku \\(vocaloid\\)", types.Concept("miku \\(vocaloid\\)")),
        ("object: a-b | c d, e -> f", types.Concept("a-b", "object", "f", ("c d", "e"))),
        ('object: the "big" one', types.Concept('the "big" one')),
        ("object: fox * 2 * 3", types.Concept("fox * 2", weight=3.0)),
    ],
)
def test_lines_of_older_patches_read_as_they_did(line, concept):
    assert text.parse_concept(line) == concept
    assert text.parse_concept(text.format_concept(concept)) == concept


def test_files_read_the_same_notations(tmp_path):
    (tmp_path / "a.txt").write_text(
        "1. fox\n2. house, cat\nkeep: (dog:1.2), wolf", encoding="utf-8"
    )
    found = lists.read(tmp_path / "a.txt")
    assert [c.name for c in found.concepts] == ["fox", "house", "cat"]
    assert found.keep == ("dog", "wolf") and found.notes
    table = 'name,superclass,aliases,kind\n- fox,(animal:1.2),"vixen; red fox",\n'
    table += '"Paris, France",city,,\nmiku \\(vocaloid\\),,,\n"(wolf)",,,keep\n'
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    found = lists.read(tmp_path / "a.csv")
    assert found.concepts == (
        types.Concept("fox", "object", "animal", ("vixen", "red fox")),
        types.Concept("Paris, France", "object", "city"),
        types.Concept("miku (vocaloid)"),
    )
    assert found.keep == ("wolf",) and text.parse(*text.format_set(found)) == found
    (tmp_path / "a.csv").write_text("name\n{a}{b}\n", encoding="utf-8")
    with pytest.raises(UnlearnError, match="row 2: .* braces"):
        lists.read(tmp_path / "a.csv")


PIECES = ["fox", "ice cream", "house", "monet", " ", ", ", "; ", "\n", "- ", "1. ", "2) ", "(", ")",
          ":1.3", "[", "]", "{", "}", "|", " | ", " -> ", "=>", "\u2192", "->", '"', "'", "\u201c",
          "\u201d", "\\(", "\\)", "\\", "# ", " # x", "keep: ", "style: ", "artist:", "embedding:x",
          "<lora:a:1>", "<b>", "</li>", "&amp;", " AND ", "BREAK", " and ", "__", "_", "*", " * 2",
          "**", "`", ".", "...", "etc.", "\t", "\uff0c", "\u3001", "\uff1a", "\x00", "\U0001f98a",
          "\u200b", "'s",
          "/", " - ", "--", "=", "~", "@", "a", "B:", "9", "\u72d0", "\xa0"]  # fmt: skip


@given(
    st.lists(st.sampled_from(PIECES), max_size=14), st.lists(st.sampled_from(PIECES), max_size=6)
)
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_read_and_written_back_or_refused(forget, keep):
    try:
        found = text.parse("".join(forget), "".join(keep))
    except UnlearnError as error:
        assert "\n" not in str(error)
        return
    assert text.parse(*text.format_set(found)) == found
    assert text.parse(text.understood(found)) == found
    assert [text.parse_concept(text.format_concept(c)) for c in found.concepts] == [*found.concepts]


def test_a_line_of_many_marks_takes_little_time():
    for mark in "\",'();{}[]|*_`<>-:#&.~ \\":
        for said in (mark * 10**5, f"a{mark}" * 30_000, f"{mark}a" * 30_000):
            try:
                text.parse(said, said)
            except UnlearnError:
                continue
