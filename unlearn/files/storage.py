"""Files in ComfyUI's models folders: found by name and never outside them, written whole or not at all, looked at before they are read."""

import contextlib
import json
import math
import os
import re
import stat
import threading
import time
from pathlib import Path

import comfy.model_management
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import UnlearnError

ENDING = ".safetensors"
KEY = re.compile(r"diffusion_model(\.\w+)+\.weight")  # of a weight that a file may speak of
LARGEST_HEADER = 50_000_000  # bytes; safetensors itself reads twice that
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "U8": torch.uint8,
}
DTYPES |= {"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
MAX_NAME_BYTES = 200  # bytes of a name with its folders: file systems take 255 of a part, Windows 260 of a path, and half-written names are longer
STALE = 3600  # seconds after which a half-written file is nobody's
_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.IGNORECASE
)  # by Windows
_HALF = re.compile(r"\.tmp\w{6}")
_FORBIDDEN = re.compile(
    r'[\x00-\x1f\x7f<>:"|?*]'
)  # by Windows; a colon opens an alternate stream there
DAMAGE = (
    SafetensorError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    OverflowError,
    RuntimeError,
)


def folders(kind):
    """The folders of a `kind` of file, the first one for new files: those of extra_model_paths, then `kind` in the models folder."""
    import folder_paths

    own = os.path.join(folder_paths.models_dir, kind)
    known = folder_paths.folder_names_and_paths.get(kind, ([],))[0]
    if own not in known:
        folder_paths.add_model_folder_path(kind, own)
    return [Path(p) for p in folder_paths.get_folder_paths(kind)]


def listed(kind):
    """Names of the .safetensors files of a kind, with their subfolders."""
    import folder_paths

    folders(kind)
    return [n for n in folder_paths.get_filename_list(kind) if n.endswith(ENDING)]


def inside(folder, name):
    """The path of `name` in a folder, parts parted by / or \\ on every system, so that workflows travel; raises UnlearnError for a name
    that leads out of it."""
    root, path = Path(folder).resolve(), None
    # RuntimeError: links in a circle, up to Python 3.12. ValueError: a name with a zero byte
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = (root / name.replace("\\", "/")).resolve()
    if path is None or not name.strip() or path == root or not path.is_relative_to(root):
        raise UnlearnError(
            f"The file name {_short(name)} leads out of the folder; use a plain name such as 'my_file'."
        )
    return path


def new_in(folder, name, ending=ENDING):
    """The path of a new file in a folder, its ending added; raises UnlearnError for a name that leads out of the folder, or that a
    system would refuse or take for something else: what is written on one machine must be a file on every other."""
    stem = name.strip().removesuffix(ending).replace("\\", "/")
    for part in stem.split("/"):
        if (
            not part.strip()
            or part.endswith((".", " "))
            or _FORBIDDEN.search(part)
            or _RESERVED.fullmatch(part)
        ):
            raise UnlearnError(
                f"The file name {_short(name)} is not a name on every system; use a plain one such as 'my_file'."
            )
    if len(stem.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise UnlearnError(
            f"The file name {_short(name)} is too long; use one of at most {MAX_NAME_BYTES} letters."
        )
    return inside(folder, stem + ending)


def new(kind, name):
    """The path of a new file of a kind, its ending added; raises UnlearnError as `new_in` does."""
    return new_in(folders(kind)[0], name)


def _short(name):
    return ascii(name) if len(name) <= 60 else f"{ascii(name[:60])}..."


def find(kind, name):
    """The path of an existing file of a kind; raises UnlearnError when there is none, or the name leads out of the folders."""
    for folder in folders(kind):
        path = inside(folder, name)
        if is_file(path):
            return path
    raise UnlearnError(
        f"There is no file {_short(name)} in models/{kind}; press R to refresh the list and choose again."
    )


def is_file(path):
    """Whether there is an ordinary file; False also for a name longer than the system takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def stamp(kind, name):
    """What changes when the file of this name does: its time and size; '' when there is none."""
    try:
        found = find(kind, name).stat()
    except (UnlearnError, OSError):
        return ""
    return f"{found.st_mtime_ns} {found.st_size}"


@contextlib.contextmanager
def opened(path):
    """(metadata, {name: (dtype, shape)}, read) of a .safetensors file; read(name) gives a tensor in memory of its own.

    One handle reads it all and nothing is mapped: a file that another process replaces meanwhile is read as it was, one that is cut
    while it is read is damaged and no crash, and one that is written over later changes no tensor. Every size it declares is looked at
    before memory is taken. Raises UnlearnError when the machine has no room for it, ValueError, OSError and the like when it is damaged.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise ValueError("it is no ordinary file")
    with open(path, "rb") as f:
        size, n = os.fstat(f.fileno()).st_size, _header_length(f)
        if n > min(LARGEST_HEADER, size - 8):
            raise ValueError("its header is longer than the file or than any of ours")
        if size > (free := comfy.model_management.get_free_memory(torch.device("cpu"))):
            gb = [f"{x / 2**30:.1f} GB" for x in (size, free)]
            raise UnlearnError(
                f"The file '{Path(path).name}' holds {gb[0]} and {gb[1]} of memory are free; close other programs."
            )
        said = json.loads(f.read(n).decode())
        metadata, places = said.pop("__metadata__", {}), _places(said, size - 8 - n)
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            raise ValueError("its metadata")

        def read(name):
            dtype, shape, begin = places[name]
            t = torch.empty(shape, dtype=DTYPES[dtype])
            f.seek(8 + n + begin)
            if t.numel() and f.readinto(t.view(-1).view(torch.uint8).numpy()) != t.nbytes:
                raise ValueError("it was cut while it was read")
            return t

        yield metadata, {name: (dtype, shape) for name, (dtype, shape, _) in places.items()}, read


def _header_length(f):
    head = f.read(8)
    if len(head) < 8:
        raise ValueError("it is shorter than its header")
    return int.from_bytes(head, "little")


def _places(said, size):
    """Tensor name -> (dtype, shape, first byte) of a header; ValueError unless the tensors fill the `size` bytes of data one by one."""
    places, end = {}, 0
    for name, entry in sorted(said.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, until) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if any(type(x) is not int or x < 0 for x in (*shape, begin, until)):
            raise ValueError("shapes and places of its tensors")
        if (
            begin != end
            or until - begin != math.prod(shape) * DTYPES[dtype].itemsize
            or until > size
            or math.prod(filter(None, shape)) > 2**62
        ):
            raise ValueError("shapes and places of its tensors")
        places[name], end = (dtype, tuple(shape), begin), until
    if end != size:
        raise ValueError("its length")
    return places


def reason(error):
    """What to say of one of the errors DAMAGE: our own words as they are, of others the kind."""
    return str(error) if type(error) is ValueError else type(error).__name__


def write(path, tensors, metadata):
    """Writes a .safetensors file (tensors by name, metadata str by str) whole or not at all, making its folder; an old file of the
    name is replaced. Raises UnlearnError when it cannot be written."""
    path = Path(path)
    # processes and threads write beside each other; the last rename wins
    part = path.with_name(f"{path.name}.part{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f"{path.name}.part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata)
        with open(part, "rb") as f:
            if _header_length(f) > LARGEST_HEADER:
                raise UnlearnError(
                    f"The file '{path.name}' would say more than {LARGEST_HEADER // 10**6} MB of itself; use fewer prompts."
                )
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise UnlearnError(
            f"The file '{path.name}' cannot be written ({error}); free disk space or choose another name."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sweep(folder, start=""):
    """Removes what processes that were killed left half-written in a folder, under names that begin with `start`, and in folders of ours
    also what safetensors leaves, which writes under a name of its own first."""
    ours = any(part.startswith(("unlearn_", "__unlearn")) for part in Path(folder).parts)
    for left in Path(folder).iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            half = (
                left.name.startswith(start)
                and f"{ENDING}.part" in left.name
                or ours
                and _HALF.fullmatch(left.name)
            )
            if half and left.stat().st_mtime < time.time() - STALE:
                left.unlink()
