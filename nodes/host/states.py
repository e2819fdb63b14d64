"""Token states of prompts, kept on disk between runs, for encoding is the slow part of every closed-form solve.

What is kept is what statistics read: the states up to the end token and samples of the padding. One safetensors file per batch lies
in a folder per text encoder, named by what the encoder says of two probe sentences, so that another checkpoint, a LoRA or another
clip skip never meets old states. The folder is bounded; the oldest files go first.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import prompts

LIMIT = 512 * 2**20  # bytes on disk, all text encoders together
PAD_SAMPLES = 6  # of the padding behind a concept
KEPT_PAD_SAMPLES = 3  # of the padding behind a kept sentence
PROBES = ("a photo of a cat", "an oil painting of two ships at night, by a famous artist, highly detailed")


def pads(end, length, n=PAD_SAMPLES):
    """Positions of n samples of the padding behind the end token at `end`, evenly spread."""
    return torch.linspace(end + 1, length - 1, n).long().unique().tolist() if end + 1 < length else []


def kept_positions(end, length):
    """Every position whose state is kept on disk."""
    return [*range(end + 1), *sorted({*pads(end, length), *pads(end, length, KEPT_PAD_SAMPLES)})]


def default_folder():
    """ComfyUI's own folder for such data where a server runs, else None: nothing is written from tests and scripts."""
    running = sys.modules.get("server")
    if getattr(getattr(running, "PromptServer", None), "instance", None) is None:
        return None
    import folder_paths

    return Path(folder_paths.get_user_directory()) / "__unlearn" / "states"  # __: never served over HTTP


def fingerprint(clip):
    """Hex digest of what a text encoder says of PROBES, rounded to three figures behind the point."""
    states = prompts.encode(clip, PROBES)
    h = hashlib.blake2b(digest_size=12)
    for text in PROBES:
        h.update((states[text].double() * 1000).round().to(torch.int32).numpy().tobytes())
    return h.hexdigest()


class States:
    """Reads token states through a CLIP: `fetch` is from disk what lies there, encodes the rest and keeps it.

    folder: where to keep them, None for nowhere; limit: bytes on disk.
    """

    def __init__(self, clip, folder=None, limit=LIMIT):
        self.clip, self.limit = clip, limit
        self.folder = None if folder is None else Path(folder) / fingerprint(clip)
        self.places = {}  # text -> (file, offset, end, length)
        self.encoded = 0
        if self.folder is not None and self.folder.is_dir():
            for file in sorted(self.folder.glob("*.safetensors")):
                held = self._open(file, lambda f: json.loads(f.metadata()["texts"])) or []
                self.places |= {t: (file, *rest) for t, *rest in held}

    def _open(self, file, read):
        """read(opened file of states), or None for a damaged or vanished file: it is removed, and what it held is encoded anew."""
        try:
            with safe_open(file, "pt") as f:
                return read(f)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            file.unlink(missing_ok=True)
            self.places = {t: p for t, p in self.places.items() if p[0] != file}
            return None

    def fetch(self, wanted, progress=None):
        """Text -> states float32 [length, d] of Prompts; positions in the padding that nobody reads hold zeros when they came from disk."""
        wanted = {p.text: p for p in wanted}
        found, by_file = {}, {}
        for text in wanted:
            if text in self.places:
                by_file.setdefault(self.places[text][0], []).append(text)
        for file, texts in by_file.items():
            rows = self._open(file, lambda f: f.get_tensor("rows"))
            for text in texts if rows is not None else ():
                _, offset, end, length = self.places[text]
                where = kept_positions(end, length)
                found[text] = torch.zeros(length, rows.shape[1])
                found[text][where] = rows[offset : offset + len(where)]
        if progress is not None and found:
            progress.step(len(found))
        new = [t for t in wanted if t not in found]
        if new:
            self.encoded += len(new)
            states = prompts.encode(self.clip, new, progress)
            if self.folder is not None:
                self._keep({t: (wanted[t].end, states[t]) for t in new})
            found |= states
        return found

    def _keep(self, states):
        """Writes one file with text -> (end, states); a full or read-only disk is no reason to stop."""
        rows, texts, offset = [], [], 0
        for text, (end, state) in states.items():
            where = kept_positions(end, len(state))
            texts.append((text, offset, end, len(state)))
            rows.append(state[where])
            offset += len(where)
        name = hashlib.blake2b("\0".join(states).encode(), digest_size=12).hexdigest()
        file, part = self.folder / f"{name}.safetensors", self.folder / f"{name}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"rows": torch.cat(rows).contiguous()}, part, {"texts": json.dumps(texts)})
            os.replace(part, file)
            self._prune()
        except (OSError, SafetensorError):
            part.unlink(missing_ok=True)
            return
        if file.exists():
            self.places |= {t: (file, *rest) for t, *rest in texts}

    def _prune(self):
        """Removes the oldest files of all text encoders until what is left is within the limit."""
        files = [(f.stat().st_mtime_ns, f.stat().st_size, f) for f in self.folder.parent.glob("*/*.safetensors")]
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files, key=lambda x: x[0]):
            if total <= self.limit:
                break
            file.unlink(missing_ok=True)
            self.places = {t: p for t, p in self.places.items() if p[0] != file}
            total -= size
