"""Embedding files that prompts name: whether they are there, and whether they fit the encoder.

ComfyUI reads `embedding:NAME` at the start of a prompt or behind a space. What it does not find it
leaves out, and what does not fit an encoder that encoder leaves out; both only in its log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

import torch

from ..errors import UnlearnError
from .model_types import Clip

MARK = "embedding:"
_MENTION = re.compile(r"(?:^|(?<=\s))embedding:([^\s<\[]+)")
_ANYWHERE = re.compile(r"embedding:\S")


def is_embedding(name: str) -> bool:
    """Whether a name begins with that of an embedding file."""
    return name.startswith(MARK)


def mentioned(text: str) -> tuple[str, ...]:
    """Names of the embedding files that ComfyUI reads in a prompt."""
    return tuple(name.strip(",") for name in _MENTION.findall(text))


def check(clip: Clip, text: str) -> None:
    """Raises UnlearnError unless every embedding of a prompt is there and fits every encoder."""
    if MARK not in text:
        return
    names = mentioned(text)
    if len(names) < len(_ANYWHERE.findall(text)):
        raise UnlearnError(
            f"ComfyUI reads no embedding in '{text[:80]}'; put a space before '{MARK}'."
        )
    for name in dict.fromkeys(names):
        _check_one(clip, name)


def _check_one(clip: Clip, name: str) -> None:
    read, wanted = set(), set()
    for width, tensors in _read(clip, name):
        wanted.add(width)
        read |= {int(tensor.shape[-1]) for tensor in tensors}
        if not tensors:
            read.add(0)
    if read == {0} or not read:
        raise UnlearnError(
            f"There is no embedding '{name}' in models/embeddings that can be read; put the file "
            "there, or correct the name."
        )
    if 0 in read or read != wanted:
        raise UnlearnError(
            f"The embedding '{name}' has width {_listed(read - {0})} and the text encoder reads "
            f"{_listed(wanted)}, so it would be left out in part; use one made for this kind of "
            "model."
        )


def _read(clip: Clip, name: str) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """For each encoder the width it reads, and the rows [width] that it gets for an embedding."""
    tokenizer = getattr(clip, "tokenizer", None)
    for encoder, chunks in clip.tokenize(MARK + name).items():
        own = getattr(tokenizer, f"clip_{encoder}", getattr(tokenizer, encoder, None))
        tokens = [entry[0] for chunk in chunks for entry in chunk]
        tensors = [token for token in tokens if isinstance(token, torch.Tensor)]
        width = getattr(own, "embedding_size", None)
        yield int(width or (tensors[0].shape[-1] if tensors else 0)), tensors


def _listed(widths: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(widths)))


def stamps(names: Iterable[str]) -> list[tuple[str, int, int]]:
    """(path, time of change, size) of the files of embeddings, as far as they are there.

    They tell whether a file was replaced.
    """
    import folder_paths

    wanted = {os.path.normpath(name).casefold() for name in names}
    if not wanted:
        return []
    found = []
    for folder in folder_paths.get_folder_paths("embeddings"):
        for root, _, files in os.walk(folder, followlinks=True):
            for file in files:
                path = os.path.join(root, file)
                within = os.path.normpath(os.path.relpath(path, folder)).casefold()
                known = {within, os.path.splitext(within)[0], file.casefold()}
                if wanted & (known | {os.path.splitext(file)[0].casefold()}):
                    stat = os.stat(path)
                    found.append((path, stat.st_mtime_ns, stat.st_size))
    return sorted(found)
