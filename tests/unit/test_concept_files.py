"""Concept lists as files, presets, and other forms of a name."""

import pytest

from testbed import pack

files, forms = pack.module("unlearn.concepts.lists"), pack.module("unlearn.concepts.name_variants")
text, types = pack.module("unlearn.concepts.notation"), pack.module("unlearn.types")
UnlearnError = pack.module("unlearn.errors").UnlearnError


@pytest.fixture
def node():
    return pack.module("nodes.unlearn_concepts")


def written(tmp_path, name, content, encoding="utf-8"):
    path = tmp_path / name
    path.write_text(content, encoding=encoding)
    return path


def test_a_text_file_reads_like_the_node(tmp_path):
    found = files.read(
        written(
            tmp_path,
            "a.txt",
            "# mine\nfox -> animal | vixen * 2\nkeep: wolf\nstyle: monet\nKeep : dog\n",
        )
    )
    assert found == text.parse("fox -> animal | vixen * 2\nstyle: monet", "wolf\ndog")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_in_any_dialect(tmp_path, mark, encoding):
    rows = [
        ["Name", "superclass", "aliases", "weight", "kind"],
        ["fox", "animal", "vixen|red  fox", "2.5", ""],
        ["monet", "", "", "", "Style"],
    ]
    rows += [["wolf", "", "", "", "keep"]]
    found = files.read(written(tmp_path, "a.csv", "\n".join(mark.join(r) for r in rows), encoding))
    assert found.keep == ("wolf",)
    assert found.concepts == (
        types.Concept("fox", "object", "animal", ("vixen", "red fox"), 2.5),
        types.Concept("monet", "style"),
    )


def test_a_table_of_names_alone_takes_the_nodes_kind(tmp_path):
    found = files.read(written(tmp_path, "a.csv", "name\nmonet\nvan gogh\n"), "style")
    assert [c.kind for c in found.concepts] == ["style", "style"]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", "thing\nfox", "no column 'name'"),
        ("a.csv", "", "empty"),
        ("a.csv", "name,weight\nfox,heavy", "row 2 has the weight 'heavy'"),
        ("a.csv", "name,weight\nfox,nan", "weight"),
        ("a.csv", "name,kind\nfox,beast", "kind 'beast'"),
        ("a.csv", "name,superclass\n,animal", "row 2 has no name"),
        ("a.csv", "name,weight\nfox,1\nFox,2", "stands twice"),
        ("a.csv", "name\nfox -> wolf", "row 2 has '->'"),
        ("a.csv", "name\n-> wolf", "row 2 has '->'"),
        ("a.csv", "name\n" + "x" * 200_000, "no CSV"),
        ("a.txt", "# nothing", "empty"),
    ],
)
def test_bad_files_are_named_with_one_sentence(tmp_path, name, content, says):
    with pytest.raises(UnlearnError) as error:
        files.read(written(tmp_path, name, content))
    assert says in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


def test_a_list_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    assert files.read(written(tmp_path, "a.txt", "fox".ljust(2**20))).concepts == (
        types.Concept("fox"),
    )
    with pytest.raises(UnlearnError, match=r"'a.txt' is larger than 1 MB"):
        files.read(written(tmp_path, "a.txt", "fox".ljust(2**20 + 1)))


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(UnlearnError, match="UTF-8"):
        files.read(written(tmp_path, "a.txt", "caf\u00e9", "utf-16"))
    with pytest.raises(UnlearnError, match="cannot be read"):
        files.read(tmp_path / "gone.txt")


def test_every_preset_reads_and_is_plain_text():
    assert len(files.presets()) >= 5
    for name in files.presets()[1:]:
        found = files.read_preset(name)
        assert len(found.concepts) >= 8 and found.keep, name
        assert (files.PRESETS / f"{name}.txt").read_text(encoding="utf-8").startswith("#")
    with pytest.raises(UnlearnError, match="no preset"):
        files.read_preset("../prior")


@pytest.mark.host
def test_the_node_joins_lists_files_and_presets(node, tmp_path, monkeypatch):
    monkeypatch.setattr(node.folder_paths, "get_input_directory", lambda: str(tmp_path))
    written(tmp_path, "mine.txt", "fox -> animal\nkeep: wolf")
    assert node.list_files() == ["none", "mine.txt"]
    concepts, said = node.UnlearnConcepts.execute(
        "house", "church", "object", preset="logos", file="mine.txt"
    ).result
    assert [c.name for c in concepts.concepts][0] == "house" and "fox" in [
        c.name for c in concepts.concepts
    ]
    assert {"wolf", "church", "apple"} <= set(concepts.keep) and "coca cola" in said
    alone = node.UnlearnConcepts.execute("", "dog", "object", file="mine.txt").result[0]
    assert alone.keep == ("wolf", "dog") and len(alone.concepts) == 1
    with pytest.raises(UnlearnError, match="empty"):
        node.UnlearnConcepts.execute("", "", "object")


@pytest.mark.host
def test_a_changed_file_runs_again_and_none_leaves_the_folder(node, tmp_path, monkeypatch):
    monkeypatch.setattr(node.folder_paths, "get_input_directory", lambda: str(tmp_path))
    path = written(tmp_path, "mine.txt", "fox")

    def print_of():
        return node.UnlearnConcepts.fingerprint_inputs(
            forget="", keep="", kind="object", file="mine.txt"
        )

    first = print_of()
    path.write_text("fox\ncat", encoding="utf-8")
    assert (
        print_of() != first
        and node.UnlearnConcepts.fingerprint_inputs(forget="x", keep="", kind="object") == []
    )
    (tmp_path.parent / "secret.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UnlearnError, match="leads out of the folder"):
        node.file_path("../secret.txt")
    with pytest.raises(UnlearnError, match="no concept list"):
        node.file_path("other.txt")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("fox", "foxes"),
        ("car", "cars"),
        ("ice cream", "ice creams"),
        ("berry", "berries"),
        ("toy", "toys"),
        ("church", "churches"),
        ("mouse", "mice"),
        ("snow woman", "snow women"),
        ("cats", ""),
        ("glass", "glasses"),
        ("bus", "buses"),
        ("sheep", ""),
        ("r2", ""),
        ("caf\u00e9", ""),
    ],
)
def test_plurals(name, expected):
    assert forms.plural(name) == expected


def test_forms_of_names():
    assert forms.name_variants("ice cream") == ("ice creams", "ice-cream", "icecream")
    assert forms.name_variants("spider-man") == ("spider-men", "spider man")
    assert (
        forms.name_variants("van gogh", "style") == ()
        and forms.name_variants("nude", "explicit") == ()
    )
