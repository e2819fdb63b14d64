"""Other ways to write a concept's name that the text encoder reads as other tokens. Case is none: CLIP's tokenizer lowers it."""

import re

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
}
_IRREGULAR |= {
    "tooth": "teeth",
    "wolf": "wolves",
    "knife": "knives",
    "leaf": "leaves",
    "life": "lives",
    "half": "halves",
    "calf": "calves",
}
_SAME = {
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


def plural(name):
    """English plural of a name by its last word, or '' where there is none to write."""
    head, last = re.fullmatch(r"(.*?)([^\s-]*)", name, re.DOTALL).groups()
    low = last.lower()
    if not low.isascii() or not low.isalpha() or len(low) < 3 or low in _SAME:
        return ""
    if low in _IRREGULAR:
        return head + _IRREGULAR[low]
    if low.endswith(("s", "x", "z", "ch", "sh")):
        return (
            "" if low.endswith("s") and not low.endswith(("ss", "us")) else head + last + "es"
        )  # 'cats' is one already
    if low.endswith("y") and low[-2] not in "aeiou":
        return head + last[:-1] + "ies"
    return head + last + "s"


def name_variants(name, kind="object"):
    """Names that mean the same as `name`, without it: its plural (of objects), and its words joined or parted by hyphen or space."""
    found = [plural(name)] if kind == "object" else []
    if "-" in name:
        found.append(name.replace("-", " "))
    elif name.count(" ") == 1 and kind == "object":
        found += [name.replace(" ", "-"), name.replace(" ", "")]
    return tuple(dict.fromkeys(f for f in found if f and f.casefold() != name.casefold()))
