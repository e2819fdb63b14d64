"""Other ways to write a concept's name that the text encoder reads as other tokens.

Upper and lower case make no difference, because CLIP's tokenizer lowers every letter.
"""

import re

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "wolf": "wolves",
    "knife": "knives",
    "leaf": "leaves",
    "life": "lives",
    "half": "halves",
    "calf": "calves",
}
_WITHOUT_PLURAL = {
    "sheep",
    "fish",
    "deer",
    "aircraft",
    "spacecraft",
    "series",
    "species",
    "glasses",
    "scissors",
    "trousers",
    "jeans",
}


def plural(name: str) -> str:
    """The English plural of a name by its last word, or '' where there is none to write."""
    found = re.fullmatch(r"(.*?)([^\s-]*)", name, re.DOTALL)
    if found is None:
        return ""
    head, last = found.groups()
    low = last.lower()
    if not low.isascii() or not low.isalpha() or len(low) < 3 or low in _WITHOUT_PLURAL:
        return ""
    if low in _IRREGULAR:
        return head + _IRREGULAR[low]
    if low.endswith("s") and not low.endswith(("ss", "us")):
        return ""  # it is a plural already, as in 'cats'
    if low.endswith(("s", "x", "z", "ch", "sh")):
        return head + last + "es"
    if low.endswith("y") and low[-2] not in "aeiou":
        return head + last[:-1] + "ies"
    return head + last + "s"


def name_variants(name: str, kind: str = "object") -> tuple[str, ...]:
    """Names that mean the same as `name`, without it.

    They are its plural, for objects only, and its words joined or separated by hyphen or space.
    """
    found = [plural(name)] if kind == "object" else []
    if "-" in name:
        found.append(name.replace("-", " "))
    elif name.count(" ") == 1 and kind == "object":
        found += [name.replace(" ", "-"), name.replace(" ", "")]
    new = (variant for variant in found if variant and variant.casefold() != name.casefold())
    return tuple(dict.fromkeys(new))
