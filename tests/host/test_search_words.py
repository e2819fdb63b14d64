"""Artists find the nodes by what they want gone, and by the name of their model."""

import pytest

from testbed import pack

WORDS = pack.module("nodes.search_words")
SCHEMAS = {s.node_id: s for s in (n.define_schema() for n in pack.module("nodes").NODES)}


@pytest.mark.parametrize("word", ["nsfw", "nudity", "style", "artist", "delete", "ban"])
def test_erasers_and_the_list_are_found_by_what_is_to_go(word):
    found = {i for i, s in SCHEMAS.items() if word in s.search_aliases}
    erasers = {"ScaPreSolve", "ConceptSaliency", "DynamicMaskTrainer"}
    assert found >= {"UnlearnConcepts", "ApplyUnlearnPatch", *erasers}


@pytest.mark.parametrize("family", ["sdxl", "flux", "z-image", "wan", "qwen image", "anima"])
def test_only_what_works_with_a_family_is_found_by_its_name(family):
    found = {i for i, s in SCHEMAS.items() if family in s.search_aliases}
    assert "ScaPreSolve" in found and "DynamicMaskTrainer" not in found
    assert family in WORDS.FAMILIES


def test_no_word_is_listed_twice():
    for schema in SCHEMAS.values():
        assert len(set(schema.search_aliases)) == len(schema.search_aliases)
