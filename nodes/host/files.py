"""Files in ComfyUI's models folders: found by name and never outside them, written whole or not at all."""

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import UnlearnError

ENDING = ".safetensors"


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
    """The path of `name` in a folder; raises UnlearnError for a name that leads out of it."""
    root = Path(folder).resolve()
    try:
        path = (root / name).resolve()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        path = root
    if not name.strip() or path == root or not path.is_relative_to(root):
        raise UnlearnError(f"The file name {name!r} leads out of the folder; use a plain name such as 'my_file'.")
    return path


def new(kind, name):
    """The path of a new file of a kind, its ending added; raises UnlearnError for a name that leads out of the folder."""
    stem = name.strip().removesuffix(ENDING)
    if not stem or stem.endswith(("/", "\\", ".")):
        raise UnlearnError(f"The file name {name!r} is not a name; use a plain one such as 'my_file'.")
    return inside(folders(kind)[0], stem + ENDING)


def find(kind, name):
    """The path of an existing file of a kind; raises UnlearnError when there is none, or the name leads out of the folders."""
    for folder in folders(kind):
        path = inside(folder, name)
        if path.is_file():
            return path
    raise UnlearnError(f"There is no file {name!r} in models/{kind}; press R to refresh the list and choose again.")


def stamp(kind, name):
    """What changes when the file of this name does: its time and size; '' when there is none."""
    try:
        found = find(kind, name).stat()
    except (UnlearnError, OSError):
        return ""
    return f"{found.st_mtime_ns} {found.st_size}"


def write(path, tensors, metadata):
    """Writes a .safetensors file (tensors by name, metadata str by str) whole or not at all, making its folder; an old file of the
    name is replaced. Raises UnlearnError when it cannot be written."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise UnlearnError(f"The file '{path.name}' cannot be written ({error}); free disk space or choose another name.") from error
    finally:
        part.unlink(missing_ok=True)
