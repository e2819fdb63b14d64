"""What a node's face says of a list."""

from testbed import pack

notation = pack.module("unlearn.concepts.notation")
summary = pack.module("unlearn.concepts.summary")
lists = pack.module("unlearn.concepts.lists")


def test_a_list_in_a_sentence():
    said = summary.summary(
        notation.parse("fox -> animal | vixen\nstyle: van gogh\nexplicit: nude", "wolf\ncat")
    )
    assert said == (
        "Forgets fox (also vixen), instead: animal; style van gogh; explicit nude. "
        "Keeps 2: wolf, cat."
    )


def test_a_list_without_anything_to_keep_and_with_notes():
    found = notation.parse("- fox\n- cow")
    assert summary.summary(found) == "\n".join(["Forgets fox; cow.", *found.notes])


def test_a_long_list_is_cut():
    names = "\n".join(f"thing {i}" for i in range(20))
    said = summary.summary(notation.parse(names, names.replace("thing", "other")))
    assert "thing 7; and 12 more." in said and "Keeps 20: other 0, " in said
    assert "thing 8" not in said and "other 8" not in said


def test_a_preset_says_what_is_in_it():
    told = summary.contents("nsfw", lists.read_preset("nsfw").concepts)
    assert told == "nsfw (nude, topless, nsfw and others)"
