"""Token states of prompts, kept on disk between runs. Encoding is the slow part of every solve.

Kept are the states that statistics read: those up to the end token and samples of the padding.
One safetensors file for each batch lies in a folder for each text encoder. The folder is named by
what decides the states, so another checkpoint, LoRA or clip skip never finds old states. All
folders together are bounded; the oldest files go first.

Several ComfyUI processes may share a folder. A file appears by one rename and is never changed, so
readers need no lock. Who writes or removes holds the folder's lock, so that two that find it full
do not both make room. The package filelock comes with torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock

from ..errors import UnlearnError
from ..host import clip_identity, fast_text_encoder, folders, text_encoding
from ..host.model_types import Clip
from ..host.progress import Progress
from ..host.text_encoding import Prompt
from . import safetensors_io
from .tuning import PAD_SAMPLES

FORMAT = 2  # of what a folder holds; another number gets a folder of its own
MAX_BYTES = 512 * 2**20  # on disk, all text encoders together
MAX_POOLED = 20_000  # pooled vectors in memory
MAX_TOKENS = 4096  # tokens of a prompt, of any text encoder
WAIT = 5  # seconds to wait for another process' lock, before going on without keeping states
EMBEDDING = "embedding:"  # how ComfyUI's prompts name an embedding file
PROBES = (
    "a photo of a cat",
    "an oil painting of two ships at night, by a famous artist, highly detailed",
)
Result = TypeVar("Result")
# File, first row, position of the end token, and length; a length of 0 says that no state of the
# padding was read.
Place = tuple[Path, int, int, int]
ROWS, POOLED = "rows", "pooled"  # tensors of a file: states [n, d], and a vector [d] of each text


@cache
def pads(end: int, length: int, n: int = PAD_SAMPLES) -> tuple[int, ...]:
    """Positions of n of the PAD_SAMPLES samples of the padding after the end token at `end`.

    The samples are spread evenly over the padding of a prompt of `length` positions.
    """
    if end + 1 >= length:
        return ()
    every = torch.linspace(end + 1, length - 1, PAD_SAMPLES).long().unique()
    chosen = torch.linspace(0, len(every) - 1, min(n, len(every))).long()
    return tuple(every[chosen].tolist())


def samples_of(padding: range) -> tuple[int, ...]:
    """Positions of the samples of a padding that reaches to the end of the prompt."""
    return pads(padding.start - 1, padding.stop)


def kept_positions(end: int, length: int) -> list[int]:
    """Every position whose state is kept on disk."""
    return [*range(end + 1), *pads(end, length)]


def default_folder() -> Path | None:
    """Where states are kept between runs, or None where no server runs."""
    return folders.text_states()


def fingerprint(
    clip: Clip, probes: Mapping[str, torch.Tensor], pooled_by: str | None = None
) -> str:
    """The name of a text encoder's folder: a digest of what decides its states.

    pooled_by: the encoder whose pooled vectors are kept too, None where none are.

    These are its weights, patches and options, and which positions are kept and computed. Where
    they cannot be read, the states of two probe sentences, rounded to three decimals, stand for
    them; such a name may differ between devices.
    """
    encoder = clip_identity.identity(clip, PROBES, pooled_by)
    rule = (FORMAT, kept_positions(1, 77), fast_text_encoder.DENSE, encoder)
    h = hashlib.blake2b(repr(rule).encode(), digest_size=12)
    if encoder is None:
        for text in PROBES:
            h.update((probes[text].double() * 1000).round().to(torch.int32).numpy().tobytes())
    return h.hexdigest()


class TextStateCache:
    """Token states of prompts. `get` reads what lies on disk, and encodes and keeps the rest.

    Prompts with an embedding in them are never kept, because its file may change.
    """

    def __init__(
        self,
        clip: Clip,
        folder: Path | None = None,
        limit: int = MAX_BYTES,
        exact_padding: bool = False,
        pooled: bool = False,
    ) -> None:
        """folder: where states are kept, None for nowhere. limit: bytes on disk.

        Of a CLIP that is `altered` (host/clip_identity.py) nothing is kept or read there.
        exact_padding: every position of the padding is computed, which takes four times as long
        (see fast_text_encoder.py). pooled: the pooled vectors are read too. Such states have
        folders of their own.
        """
        self.clip, self.limit = clip, limit
        self._pooled: dict[str, torch.Tensor] | None = {} if pooled else None
        probes = text_encoding.encode(clip, PROBES)
        self.folder: Path | None = None
        self.width = probes[PROBES[0]].shape[1]
        self.places: dict[str, Place] = {}
        self.encoded = 0  # prompts that were encoded, not read
        self.fast_encoder = None
        if not exact_padding:
            self.fast_encoder = fast_text_encoder.build(clip, kept_positions, probes)
        if folder is not None and not clip_identity.clip_altered(clip):
            source = text_encoding.pooled_source(clip, PROBES[0]) if pooled else None
            name = fingerprint(clip, probes, source)
            self.folder = Path(folder) / (name + "-whole" * exact_padding + "-pooled" * pooled)
            for file in self._files(self.folder):
                self._note(file, self._open(file, self._texts) or [])

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        """The files of a text encoder's folder; none where it cannot be read."""
        with contextlib.suppress(OSError):
            return sorted(folder.glob(f"*{folders.ENDING}"))
        return []

    def _note(self, file: Path, texts: Iterable[Sequence]) -> None:
        """Notes that a file holds texts: [[text, first row, end, length]]."""
        for text, offset, end, length in texts:
            # Where two files hold a text, the one with its padding serves everybody.
            if length or not self.places.get(text, (file, 0, 0, 0))[-1]:
                self.places[text] = file, offset, end, length

    def _texts(
        self,
        metadata: dict[str, str],
        header: safetensors_io.Header,
        read: safetensors_io.Reader,
    ) -> list[list]:
        """[[text, first row, end, length]] of a file.

        Raises ValueError where this is not what `_keep` writes.
        """
        texts, (dtype, (n, width)) = json.loads(metadata["texts"]), header[ROWS]
        if dtype != "F32" or width != self.width or len(header) != 1 + (self._pooled is not None):
            raise ValueError("rows")
        if self._pooled is not None and (header[POOLED][0], header[POOLED][1][0]) != (
            "F32",
            len(texts),
        ):
            raise ValueError("pooled")
        for text, offset, end, length in texts:
            if not isinstance(text, str) or any(type(x) is not int for x in (offset, end, length)):
                raise ValueError("texts")
            if not (0 <= end < MAX_TOKENS and (length == 0 or end < length <= MAX_TOKENS)):
                raise ValueError("places")
            if not 0 <= offset <= n - len(kept_positions(end, length)):
                raise ValueError("places")
        return texts

    def _open(self, file: Path, use: Callable[..., Result]) -> Result | None:
        """use(metadata, header, read) of a file of states, or None for a damaged or vanished one.

        Such a file is removed, and what it held is encoded again.
        """
        try:
            with safetensors_io.opened(file) as contents:
                return use(*contents)
        except safetensors_io.DAMAGE:  # UnlearnError is among them: no memory for the file
            self._remove(file)
            return None

    def _remove(self, file: Path) -> None:
        # A read-only folder, or another process that reads the file on Windows, forbids it.
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        self.places = {text: place for text, place in self.places.items() if place[0] != file}

    def get(
        self, wanted: Iterable[Prompt], progress: Progress | None = None
    ) -> dict[str, torch.Tensor]:
        """Text -> states float32 [length, d] of Prompts; at least up to the end token of those
        whose padding nobody reads.

        Those at `kept_positions` are the encoder's, in the padding nearly so (see
        fast_text_encoder.py). What stands elsewhere in the padding has no meaning.
        """
        prompts: dict[str, Prompt] = {}
        for prompt in wanted:
            if prompt.padded or prompt.text not in prompts:
                prompts[prompt.text] = prompt
        self._forget_oldest()
        found = self._read(prompts)
        if progress is not None and found:
            progress.skip(len(found))
        new = [prompt for text, prompt in prompts.items() if text not in found]
        if new:
            self.encoded += len(new)
            states = self._encode(new, progress)
            self._keep({p: states[p.text] for p in new if EMBEDDING not in p.text})
            found |= states
        return found

    def _forget_oldest(self) -> None:
        """Bounds the memory that pooled vectors take."""
        while self._pooled and len(self._pooled) > MAX_POOLED:
            del self._pooled[next(iter(self._pooled))]

    def get_pooled(
        self, wanted: Iterable[Prompt], progress: Progress | None = None
    ) -> dict[str, torch.Tensor]:
        """Text -> pooled vector, float32 [1, d], of Prompts; only the texts of these are read.

        Those that `get` has read lately are in memory. Raises ValueError where the cache was not
        made for pooled vectors.
        """
        if self._pooled is None:
            raise ValueError("this cache was not made for pooled vectors")
        texts = dict.fromkeys(prompt.text for prompt in wanted)
        found = {text: self._pooled[text] for text in texts if text in self._pooled}
        missing = [text for text in texts if text not in found]
        if missing:
            self.get([text_encoding.whole(self.clip, text) for text in missing], progress)
            found |= {text: self._pooled[text] for text in missing}
        return {text: found[text][None] for text in texts}

    def _read(self, prompts: Mapping[str, Prompt]) -> dict[str, torch.Tensor]:
        """Text -> states [length, d] of those that lie on disk."""
        by_file: dict[Path, set[str]] = {}
        for text, prompt in prompts.items():
            file, _, _, length = self.places.get(text, (None, 0, 0, 0))
            if file is not None and (length or not prompt.padded):
                by_file.setdefault(file, set()).add(text)
        found = {}
        for file, wanted in by_file.items():
            contents = self._open(file, self._rows)
            if contents is None:
                continue
            held, rows, pooled = contents
            for number, (text, (offset, end, length)) in enumerate(held.items()):
                if text not in wanted:
                    continue
                positions = kept_positions(end, length)
                found[text] = torch.zeros(length or end + 1, rows.shape[1])
                found[text][positions] = rows[offset : offset + len(positions)]
                if self._pooled is not None and pooled is not None:
                    self._pooled[text] = pooled[number].clone()
        return found

    def _encode(
        self, wanted: Sequence[Prompt], progress: Progress | None
    ) -> dict[str, torch.Tensor]:
        """Text -> states of Prompts, by an encoder that skips most of the padding where it can."""
        # Test doubles and CLIPs of other packs' making know no pooled vectors.
        rest = () if self._pooled is None else (self._pooled,)
        if self.fast_encoder is not None:
            return self.fast_encoder.encode(wanted, progress, *rest)
        return text_encoding.encode(self.clip, [p.text for p in wanted], progress, *rest)

    def _rows(
        self,
        metadata: dict[str, str],
        header: safetensors_io.Header,
        read: safetensors_io.Reader,
    ) -> tuple[dict[str, tuple[int, int, int]], torch.Tensor, torch.Tensor | None]:
        """({text: (first row, end, length)}, states [n, d], pooled vectors or None) of a file.

        Raises ValueError where the states are not numbers.
        """
        held = {text: (a, b, c) for text, a, b, c in self._texts(metadata, header, read)}
        rows = read(ROWS)
        pooled = None if self._pooled is None else read(POOLED)
        if not torch.isfinite(rows).all():
            raise ValueError("rows")
        if pooled is not None and not (len(held) == len(pooled) and torch.isfinite(pooled).all()):
            raise ValueError("pooled")
        return held, rows, pooled

    def _keep(self, states: Mapping[Prompt, torch.Tensor]) -> None:
        """Writes one file with states of Prompts; a full or read-only disk is no error."""
        if self.folder is None or not states:
            return
        rows, texts, offset = [], [], 0
        for prompt, state in states.items():
            cut = not prompt.padded and len(state) == prompt.end + 1
            length = 0 if cut else len(state)
            positions = kept_positions(prompt.end, length)
            texts.append((prompt.text, offset, prompt.end, length))
            rows.append(state[positions])
            offset += len(positions)
        name = hashlib.blake2b(repr(texts).encode(), digest_size=12).hexdigest()
        file = self.folder / f"{name}{folders.ENDING}"
        metadata = {"texts": json.dumps(texts)}
        tensors = {ROWS: torch.cat(rows)}
        if self._pooled is not None:
            tensors[POOLED] = torch.stack([self._pooled[text] for text, *_ in texts])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.parent / "lock", timeout=WAIT):
                safetensors_io.write(file, tensors, metadata)
                self._prune(self.folder.parent)
        except (OSError, UnlearnError, NotImplementedError):
            return  # NotImplementedError: this file system knows no locks
        if file.exists():
            self._note(file, texts)

    def _prune(self, parent: Path) -> None:
        """Removes the oldest files of all text encoders until the rest is within the limit.

        Unfinished files of killed processes go too.
        """
        found = []
        for folder in (f for f in parent.iterdir() if f.is_dir()):
            safetensors_io.sweep(folder)
            for file in self._files(folder):
                with contextlib.suppress(OSError):  # another process may have removed it
                    found.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.limit:
                break
            self._remove(file)
            total -= size
