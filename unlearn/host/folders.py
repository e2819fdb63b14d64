"""ComfyUI's folders: files are found by name, and no name climbs out of its folder.

Links that the user made there are followed, as ComfyUI's own menus follow them.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from ..errors import UnlearnError

ENDING = ".safetensors"
# File systems take 255 bytes for each part of a path and Windows 260 for a whole path. A name with
# its folders must leave room for the models folder and for the longer names of unfinished files.
MAX_NAME_BYTES = 200
_WINDOWS_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.IGNORECASE
)
# Windows refuses these letters. A colon would open an alternate stream there.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')


def folders(kind: str) -> list[Path]:
    """The folders for a `kind` of file; new files go into the first.

    Those of extra_model_paths come first, then `kind` in the models folder.
    """
    import folder_paths

    own = os.path.join(folder_paths.models_dir, kind)
    known = folder_paths.folder_names_and_paths.get(kind, ([],))[0]
    if own not in known:
        folder_paths.add_model_folder_path(kind, own)
    return [Path(p) for p in folder_paths.get_folder_paths(kind)]


def temporary() -> Path:
    """ComfyUI's folder for what need not last."""
    import folder_paths

    return Path(folder_paths.get_temp_directory())


def listed(kind: str) -> list[str]:
    """Names of the .safetensors files of a kind, with their subfolders."""
    import folder_paths

    folders(kind)
    return [n for n in folder_paths.get_filename_list(kind) if n.endswith(ENDING)]


def name_of(kind: str, path: Path) -> str:
    """The name under which `listed` has a file in the first folder of a kind."""
    return path.relative_to(os.path.abspath(folders(kind)[0])).as_posix()


def inside(folder: str | os.PathLike, name: str) -> Path:
    """The path of `name` in a folder; raises UnlearnError for a name that climbs out of it.

    Both / and \\ separate parts on every system, so that workflows travel. `..` takes back the part
    before it, and never leads on from where a link points.
    """
    root = os.path.abspath(folder)
    path = Path(os.path.normpath(os.path.join(root, name.replace("\\", "/"))))
    readable = "\0" not in name and name.encode(errors="replace").decode() == name
    if not readable or not name.strip() or path == Path(root) or not path.is_relative_to(root):
        raise UnlearnError(
            f"The file name {_short(name)} leads out of the folder; use a plain name such as "
            "'my_file'."
        )
    return path


def new_in(folder: str | os.PathLike, name: str, ending: str = ENDING) -> Path:
    """The path of a new file in a folder, with its ending.

    Raises UnlearnError for a name that leads out of the folder, or that some system would refuse
    or take for something else: what is written on one machine must be a file on every other.
    """
    stem = name.strip().removesuffix(ending).replace("\\", "/")
    for part in stem.split("/"):
        bad_end = part.endswith((".", " "))
        if (
            not part.strip()
            or bad_end
            or _FORBIDDEN.search(part)
            or _WINDOWS_DEVICE.fullmatch(part)
        ):
            raise UnlearnError(
                f"The file name {_short(name)} is not a name on every system; use a plain one such "
                "as 'my_file'."
            )
    if len(stem.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise UnlearnError(
            f"The file name {_short(name)} is too long; use one of at most {MAX_NAME_BYTES} "
            "letters."
        )
    return inside(folder, stem + ending)


def new(kind: str, name: str) -> Path:
    """The path of a new file of a kind with its ending; raises UnlearnError as `new_in` does."""
    return new_in(folders(kind)[0], name)


def _short(name: str) -> str:
    return ascii(name) if len(name) <= 60 else f"{ascii(name[:60])}..."


def find(kind: str, name: str) -> Path:
    """The path of an existing file of a kind.

    Raises UnlearnError when there is none, or when the name leads out of the folders.
    """
    for folder in folders(kind):
        path = inside(folder, name)
        if is_file(path):
            return path
    raise UnlearnError(
        f"There is no file {_short(name)} in models/{kind}; press R to refresh the list and "
        "choose again."
    )


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file, also behind a link.

    False as well for a name longer than the system takes, and for links in a circle.
    """
    try:
        return path.is_file()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, up to Python 3.12
        return False


def stamp(kind: str, name: str) -> str:
    """Time and size of a file, which change when the file does; '' when there is none."""
    try:
        found = find(kind, name).stat()
    except (UnlearnError, OSError):
        return ""
    return f"{found.st_mtime_ns} {found.st_size}"


def text_states() -> Path | None:
    """Where token states are kept between runs, or None where no server runs.

    So nothing is written from tests and scripts.
    """
    running = sys.modules.get("server")
    if getattr(getattr(running, "PromptServer", None), "instance", None) is None:
        return None
    import folder_paths

    # ComfyUI never serves a folder whose name begins with __ over HTTP.
    return Path(folder_paths.get_user_directory()) / "__unlearn" / "states"
