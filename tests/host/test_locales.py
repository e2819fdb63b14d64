"""The words of the nodes in other languages.

Any language may lag behind, because ComfyUI falls back to what the schemas say, in English: what is
missing is listed as a warning. What is there must name inputs that exist, and English must say what
the schemas say.
"""

import re
import shutil
import warnings
from pathlib import Path

import folder_paths
import pytest
from app.custom_node_manager import CustomNodeManager

from testbed import pack
from testbed.texts import english

SCHEMAS = [node.define_schema() for node in pack.module("nodes").NODES]
ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja")
TRANSLATED = ("zh", "ja")


@pytest.fixture(scope="module")
def translations(tmp_path_factory):
    """What ComfyUI itself reads out of `locales`."""
    custom_nodes = tmp_path_factory.mktemp("custom_nodes")
    shutil.copytree(ROOT / "locales", custom_nodes / "unlearn" / "locales")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(custom_nodes)])
        return CustomNodeManager().build_translations()


def flat(words, path=""):
    """{path: text} of all texts in nested dicts."""
    return {
        p: t
        for k, v in words.items()
        for p, t in (flat(v, f"{path}{k}.") if isinstance(v, dict) else {path + k: v}).items()
    }


EXPECTED = flat({s.node_id: english(s) for s in SCHEMAS})


def test_there_are_these_languages(translations):
    assert set(translations) == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_names_only_what_exists(translations, language):
    found = flat(translations[language]["nodeDefs"])
    assert not found.keys() - EXPECTED.keys()
    assert all(text.strip() for text in found.values())
    assert set(translations[language]["nodeCategories"]) == {
        part for s in SCHEMAS for part in s.category.split("/")
    }


@pytest.mark.parametrize("language", TRANSLATED)
def test_what_is_not_translated_is_listed(translations, language):
    """It fails only where so much is missing that the language is no help."""
    missing = sorted(EXPECTED.keys() - flat(translations[language]["nodeDefs"]).keys())
    if missing:
        warnings.warn(f"{language} lacks {len(missing)}: {', '.join(missing)}", stacklevel=1)
    assert len(missing) < len(EXPECTED) / 2


def test_english_is_what_the_schemas_say(translations):
    found = flat(translations["en"]["nodeDefs"])
    assert not {path: text for path, text in found.items() if EXPECTED.get(path) != text}


@pytest.mark.parametrize("language", TRANSLATED)
def test_translations_are_translated_and_keep_figures_and_placeholders(translations, language):
    found = flat(translations[language]["nodeDefs"])
    for path, text in EXPECTED.items():
        if path in found and path.endswith((".tooltip", ".description")):
            assert not found[path].isascii(), path
            assert all(
                part in found[path]
                for part in re.findall(r"\{\w+\}|\d+(?:\.\d+)?|\bmodels/\w+", text)
            ), path


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_and_descriptions_read_the_same_through_the_frontend(translations, language):
    for path, text in flat(
        translations[language]["nodeDefs"]
    ).items():  # it reads tooltips raw and all others as vue-i18n messages
        assert path.endswith(".tooltip") or not re.search(r"[@{}|%]", text), path
