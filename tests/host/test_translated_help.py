"""Every help page is there in Chinese and Japanese, with the same headings and inputs."""

import re

import pytest

from testbed import pack
from tools import write_translated_docs as docs

NODES = pack.module("nodes").NODES
PAGES = docs.pages()


@pytest.mark.parametrize("language", docs.LANGUAGES)
@pytest.mark.parametrize("node", NODES, ids=lambda n: n.__name__)
def test_a_page_has_the_headings_and_inputs_of_the_english_one(node, language):
    """ComfyUI asks for web/docs/<node>/<language>.md first, then for web/docs/<node>.md."""
    schema = node.define_schema()
    english = (docs.DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")
    text = (docs.DOCS / schema.node_id / f"{language}.md").read_text(encoding="utf-8")
    translated = docs.WORDS[language]["headings"]
    assert docs.headings(text) == [translated[h] for h in docs.headings(english)]
    ids = [i.id for i in schema.inputs] + [o.id for i in schema.inputs for o in docs.options(i)]
    for name in ids:
        assert re.search(rf"\*\*{name}\*\*|\(`{name}`\)", text), name
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert (docs.DOCS / picture).is_file()  # the frontend puts the folder of the English page first


@pytest.mark.parametrize("path", PAGES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_page_is_as_the_tool_writes_it(path):
    """Stale? Run `python3 dev.py tool write_translated_docs`."""
    assert path.read_text(encoding="utf-8") == PAGES[path]


def test_no_words_are_left_over():
    """Each text of help_words.json stands on a page."""
    for words in docs.WORDS.values():
        for node, parts in words["pages"].items():
            english = (docs.DOCS / f"{node}.md").read_text(encoding="utf-8")
            assert set(parts) <= set(docs.headings(english)), node
