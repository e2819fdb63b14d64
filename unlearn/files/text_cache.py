"""Token states of prompts, kept on disk between runs, for encoding is the slow part of every closed-form solve.

What is kept is what statistics read: the states up to the end token and samples of the padding. One safetensors file per batch lies
in a folder per text encoder, named by what the encoder says of two probe sentences, so that another checkpoint, a LoRA or another
clip skip never meets old states. The folder is bounded; the oldest files go first.

Several ComfyUI processes may share the folder: a file appears by one rename and is never changed, so that readers need no lock; who
writes or removes holds the folder's lock, so that two who find it full do not both make room. filelock comes with torch.
"""

import contextlib
import hashlib
import json
import sys
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from ..errors import UnlearnError
from ..host import fast_text_encoder, text_encoding
from . import storage

MAX_BYTES = 512 * 2**20  # bytes on disk, all text encoders together
PAD_SAMPLES = (
    6  # of the padding behind a concept; with four a forgotten house was still drawn in the demo
)
KEPT_PAD_SAMPLES = 3  # of these, behind a kept sentence
MAX_TOKENS = 4096  # tokens of a prompt, of any text encoder
WAIT = 5  # seconds for another process' lock, then nothing is kept
PROBES = (
    "a photo of a cat",
    "an oil painting of two ships at night, by a famous artist, highly detailed",
)


@cache
def pads(end, length, n=PAD_SAMPLES):
    """Positions of n of PAD_SAMPLES samples of the padding behind the end token at `end`, evenly spread."""
    every = (
        torch.linspace(end + 1, length - 1, PAD_SAMPLES).long().unique()
        if end + 1 < length
        else torch.zeros(0).long()
    )
    return tuple(every[torch.linspace(0, len(every) - 1, min(n, len(every))).long()].tolist())


def kept_positions(end, length):
    """Every position whose state is kept on disk."""
    return [*range(end + 1), *pads(end, length)]


def default_folder():
    """ComfyUI's own folder for such data where a server runs, else None: nothing is written from tests and scripts."""
    running = sys.modules.get("server")
    if getattr(getattr(running, "PromptServer", None), "instance", None) is None:
        return None
    import folder_paths

    return (
        Path(folder_paths.get_user_directory()) / "__unlearn" / "states"
    )  # __: never served over HTTP


def fingerprint(probes):
    """Hex digest of what a text encoder says of PROBES, rounded to three figures behind the point, and of which positions are kept and
    computed: the name of its folder."""
    h = hashlib.blake2b(
        repr((kept_positions(1, 77), fast_text_encoder.DENSE)).encode(), digest_size=12
    )
    for text in PROBES:
        h.update((probes[text].double() * 1000).round().to(torch.int32).numpy().tobytes())
    return h.hexdigest()


class TextStateCache:
    """Reads token states through a CLIP: `fetch` is from disk what lies there, encodes the rest and keeps it.

    folder: where to keep them, None for nowhere; limit: bytes on disk; exact_padding: every position of the padding is computed, which takes four
    times as long (see abridged.py); such states have a folder of their own.
    """

    def __init__(self, clip, folder=None, limit=MAX_BYTES, exact_padding=False):
        self.clip, self.limit = clip, limit
        probes = text_encoding.encode(clip, PROBES)
        self.folder, self.width = None, 0
        self.places = {}  # text -> (file, offset, end, length)
        self.encoded = 0
        self.reader = (
            None if exact_padding else fast_text_encoder.reader(clip, kept_positions, probes)
        )
        if folder is not None:
            self.width = probes[PROBES[0]].shape[1]
            self.folder = Path(folder) / (fingerprint(probes) + "-whole" * exact_padding)
            for file in self._files(self.folder):
                self.places |= {
                    t: (file, *rest) for t, *rest in self._open(file, self._texts) or []
                }

    @staticmethod
    def _files(folder):
        """The files of a text encoder's folder; none where it cannot be read."""
        with contextlib.suppress(OSError):
            return sorted(folder.glob(f"*{storage.ENDING}"))
        return []

    def _texts(self, metadata, header, read):
        """[[text, offset, end, length]] of a file; ValueError where it is not what `_keep` writes."""
        texts, (dtype, (n, width)) = json.loads(metadata["texts"]), header["rows"]
        if dtype != "F32" or width != self.width or len(header) != 1:
            raise ValueError("rows")
        for text, offset, end, length in texts:
            if not isinstance(text, str) or any(type(x) is not int for x in (offset, end, length)):
                raise ValueError("texts")
            if not (
                0 <= end < length <= MAX_TOKENS
                and 0 <= offset <= n - len(kept_positions(end, length))
            ):
                raise ValueError("places")
        return texts

    def _open(self, file, use):
        """use(metadata, header, read) of a file of states, or None for a damaged or vanished file: it is removed, and what it held is
        encoded anew."""
        try:
            with storage.opened(file) as opened:
                return use(*opened)
        except storage.DAMAGE:  # UnlearnError among them: no memory for it
            self._remove(file)
            return None

    def _remove(self, file):
        with contextlib.suppress(
            OSError
        ):  # it lies in a read-only folder, or another process reads it on Windows
            file.unlink(missing_ok=True)
        self.places = {t: p for t, p in self.places.items() if p[0] != file}

    def get(self, wanted, progress=None):
        """Text -> states float32 [length, d] of Prompts; those at `kept_positions` are what the encoder says (in the padding nearly so, see
        abridged.py), elsewhere in the padding stands anything."""
        wanted = {p.text: p for p in wanted}
        found, by_file = {}, {}
        for text in wanted:
            if text in self.places:
                by_file.setdefault(self.places[text][0], []).append(text)
        for file, texts in by_file.items():
            held, rows = self._open(file, self._rows) or ({}, None)
            for text in held.keys() & texts:
                offset, end, length = held[text]
                where = kept_positions(end, length)
                found[text] = torch.zeros(length, rows.shape[1])
                found[text][where] = rows[offset : offset + len(where)]
        if progress is not None and found:
            progress.step(len(found))
        new = [t for t in wanted if t not in found]
        if new:
            self.encoded += len(new)
            states = self._encode([wanted[t] for t in new], progress)
            if self.folder is not None:
                self._keep({t: (wanted[t].end, states[t]) for t in new})
            found |= states
        return found

    def _encode(self, wanted, progress):
        """Text -> states of Prompts, by a text encoder that skips most of the padding where it can."""
        if self.reader is not None:
            return self.reader.encode(wanted, progress)
        return text_encoding.encode(self.clip, [p.text for p in wanted], progress)

    def _rows(self, metadata, header, read):
        """({text: (offset, end, length)}, states [n, d]) of a file; ValueError where they are not numbers."""
        held, rows = (
            {t: tuple(rest) for t, *rest in self._texts(metadata, header, read)},
            read("rows"),
        )
        if not torch.isfinite(rows).all():
            raise ValueError("rows")
        return held, rows

    def _keep(self, states):
        """Writes one file with text -> (end, states); a full or read-only disk is no reason to stop."""
        rows, texts, offset = [], [], 0
        for text, (end, state) in states.items():
            where = kept_positions(end, len(state))
            texts.append((text, offset, end, len(state)))
            rows.append(state[where])
            offset += len(where)
        name = hashlib.blake2b("\0".join(states).encode(), digest_size=12).hexdigest()
        file = self.folder / f"{name}{storage.ENDING}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.parent / "lock", timeout=WAIT):
                storage.write(file, {"rows": torch.cat(rows)}, {"texts": json.dumps(texts)})
                self._prune()
        except (
            OSError,
            UnlearnError,
            NotImplementedError,
        ):  # NotImplementedError: a disk that knows no locks
            return
        if file.exists():
            self.places |= {t: (file, *rest) for t, *rest in texts}

    def _prune(self):
        """Removes the oldest files of all text encoders until what is left is within the limit, and what was left half-written."""
        found = []
        for folder in (f for f in self.folder.parent.iterdir() if f.is_dir()):
            storage.sweep(folder)
            for file in self._files(folder):
                with contextlib.suppress(OSError):  # it has just been removed
                    found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.limit:
                break
            self._remove(file)
            total -= size
