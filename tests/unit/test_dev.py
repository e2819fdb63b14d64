"""dev.py in a folder of its own: what it refuses, resumes, repairs and skips.

Nothing is downloaded: a function stands in for pip.
"""

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

DEV = Path(__file__).resolve().parents[2] / "dev.py"
HOST_FILES = {
    "main.py": "",
    "comfyui_version.py": '__version__ = "0.30.0"\n',
    "requirements.txt": "torch\n",
    "nodes.py": "OWNER = 'host'\n",
}


def load(folder):
    """A copy of dev.py, imported from `folder`, which it takes for the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(DEV, folder / "dev.py")
    spec = importlib.util.spec_from_file_location("dev_copy", folder / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_host(folder, files=HOST_FILES):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def make_venv(dev):
    dev.PYTHON.parent.mkdir(parents=True, exist_ok=True)
    dev.PYTHON.touch()
    (dev.VENV / "pyvenv.cfg").write_text("home = /somewhere\nversion = 3.11.7\n")


def make_archive(path, members):
    """A source archive of {name: text}; a tuple makes a symbolic link to its one item."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(text, tuple):
                info.type, info.linkname = tarfile.SYMTYPE, text[0]
                tar.addfile(info)
            else:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    return path


def vendored(files=HOST_FILES):
    members = {f"pkg-1/vendor/ComfyUI/{name}": text for name, text in files.items()}
    return {"pkg-1/setup.py": "raise SystemExit", **members, "pkg-1/vendor/other/file.py": ""}


@pytest.fixture
def dev(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    return load(tmp_path / "repo")


@pytest.fixture
def ran(dev, monkeypatch):
    """The commands that dev.py starts. They do nothing; one with a word of `failing` fails."""

    class Ran(list):
        failing = set()

        def pip(self):
            return [command[4:] for command in self if command[1:4] == ["-I", "-m", "pip"]]

    commands = Ran()

    def run(command, check=False, **_):
        commands.append(command)
        if command[0] == str(dev.PYTHON) and not dev.PYTHON.exists():
            raise FileNotFoundError(command[0])
        code = int(bool(commands.failing.intersection(command)))
        if check and code:
            raise subprocess.CalledProcessError(code, command)
        if command[1:3] == ["-m", "venv"]:
            make_venv(dev)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(dev.subprocess, "run", run)
    return commands


@pytest.fixture
def archive(dev, monkeypatch, tmp_path):
    """Makes `pip download` deliver an archive of the given members.

    dev.py expects that archive, unless `expected` is False.
    """

    def deliver(members, expected=True):
        made = make_archive(tmp_path / "pkg-1.tar.gz", members)
        if expected:
            monkeypatch.setattr(dev, "HOST_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())

        def pip(*args, sentence):
            if args[0] == "download":
                shutil.copy(made, args[args.index("--dest") + 1])

        monkeypatch.setattr(dev, "pip", pip)

    return deliver


def one_line(capsys):
    err = capsys.readouterr().err.splitlines()
    told = [line for line in err if not line.startswith("set-up ")]
    assert len(told) == 1 and told[0].startswith("dev.py: ") and told[0].endswith(".")
    return told[0]


def test_usage(dev, capsys):
    assert dev.main(["-h"]) == 0
    assert "python3 dev.py test" in capsys.readouterr().out
    assert dev.main([]) == 2
    assert dev.main(["tset"]) == 2


def test_all_tests_run_in_two_processes_and_chosen_ones_as_pytest_is_told(dev, monkeypatch):
    handed = []
    monkeypatch.setattr(dev, "hand_over", lambda *given: handed.append(given))
    for args in ([], ["tests/unit", "-x"], ["--pdb"], ["--fast"]):
        dev.main(["test", *args])
    assert handed == [
        ("pytest", ["-n", "2"]),
        ("pytest", ["tests/unit", "-x"]),
        ("pytest", ["--pdb"]),
        ("pytest", ["--fast"]),
    ]


def test_a_wrong_comfyui_dir_is_one_sentence(dev, ran, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert dev.main(["test"]) == 1
    assert f"COMFYUI_DIR is {tmp_path}" in one_line(capsys)
    assert not ran


def test_host_is_the_named_one_then_the_surrounding_one(dev, monkeypatch, tmp_path):
    assert dev.own_host() is None
    around, named = make_host(tmp_path / "Comfy"), make_host(tmp_path / "named")
    assert load(around / "custom_nodes" / "pack").own_host() == around
    monkeypatch.setenv("COMFYUI_DIR", str(named))
    assert load(around / "custom_nodes" / "pack").own_host() == named


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_linked_pack_finds_the_comfyui_around_the_link(dev, tmp_path):
    around = make_host(tmp_path / "Comfy")
    (around / "custom_nodes").mkdir()
    (around / "custom_nodes" / "pack").symlink_to(dev.ROOT)
    linked = load(around / "custom_nodes" / "pack")
    assert linked.own_host() == around
    assert linked.ROOT == dev.ROOT  # one .venv, however the pack is reached


def test_a_second_start_runs_nothing(dev, ran):
    host = make_host(dev.UNPACKED)
    make_venv(dev)
    assert dev.set_up() == host
    assert [command[0] for command in ran.pip()] == ["--disable-pip-version-check"]
    del ran[:]
    assert dev.set_up() == host
    assert not ran


def test_changed_requirements_install_again(dev, ran):
    host = make_host(dev.UNPACKED)
    make_venv(dev)
    dev.set_up()
    (host / "requirements.txt").write_text("torch\neinops\n")
    del ran[:]
    dev.set_up()
    (install,) = ran.pip()
    assert install[1:4] == ["install", "-r", str(host / "requirements.txt")]
    assert set(dev.TORCH + dev.TOOLS) <= set(install)
    assert dev.is_ready(host)


def test_a_failed_install_is_one_sentence_and_is_taken_up_again(dev, ran, capsys):
    host = make_host(dev.UNPACKED)
    make_venv(dev)
    dev.set_up()
    (host / "requirements.txt").write_text("torch\neinops\n")
    ran.failing = {"install"}
    capsys.readouterr()
    assert dev.main(["test"]) == 1
    assert "pip could not install" in one_line(capsys)
    (host / "requirements.txt").write_text(HOST_FILES["requirements.txt"])
    assert not dev.is_ready(
        host
    )  # the old stamp is gone, because the failed install may have changed anything
    ran.failing = set()
    assert dev.set_up() == host
    assert dev.is_ready(host)


def test_a_broken_venv_is_made_anew(dev, ran):
    make_host(dev.UNPACKED)
    make_venv(dev)
    ran.failing = {"import pip"}
    dev.set_up()
    assert [sys.executable, "-m", "venv", "--clear", str(dev.VENV)] in ran


def test_a_folder_of_wheels_is_all_that_is_needed(dev, ran, tmp_path, monkeypatch):
    """No network: packages come from `wheels`, torch from the machine, and ComfyUI lies there."""
    dev.WHEELS.mkdir(parents=True)
    (dev.WHEELS / "einops-1-py3-none-any.whl").touch()
    made = make_archive(
        dev.WHEELS / f"{dev.HOST_PACKAGE.replace('-', '_')}-{dev.HOST_VERSION}.tar.gz", vendored()
    )
    monkeypatch.setattr(dev, "HOST_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())
    host = dev.set_up()
    assert dev.is_ready(host)
    (venv,) = [command for command in ran if command[1:3] == ["-m", "venv"]]
    assert "--system-site-packages" in venv
    (install,) = [command for command in ran.pip() if "install" in command]
    assert install[install.index("install") + 1 :] == [
        "--no-index",
        "--no-deps",
        str(dev.WHEELS / "einops-1-py3-none-any.whl"),
    ]
    (dev.WHEELS / "numpy-1-py3-none-any.whl").touch()
    assert not dev.is_ready(host)


def test_the_archive_is_unpacked_and_only_its_comfyui(dev, ran, archive):
    archive(vendored())
    assert dev.set_up() == dev.UNPACKED
    assert {path.name for path in dev.UNPACKED.iterdir()} == set(HOST_FILES)
    assert not list(dev.STATE.glob("unpack-*"))


def test_another_archive_is_refused_and_removed(dev, ran, archive, tmp_path, capsys):
    archive(vendored(), expected=False)
    assert dev.main(["test"]) == 1
    assert "SHA-256" in one_line(capsys)
    assert not dev.UNPACKED.exists() and not list(dev.STATE.glob("unpack-*"))
    other = make_archive(tmp_path / "other.tar.gz", vendored())
    with pytest.raises(dev.Fail):
        dev.check_archive(other)
    assert not other.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_unpack_leaves_nothing_to_trust(dev, ran, archive, monkeypatch, error):
    archive(vendored())
    extract, seen = tarfile.TarFile.extract, []

    def stops(self, member, *args, **kwargs):
        seen.append(member.name)
        if len(seen) == len(HOST_FILES):
            raise error
        extract(self, member, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", stops)
        assert dev.main(["test"]) in (1, 130)
    assert not dev.UNPACKED.exists() and not list(dev.STATE.glob("unpack-*"))
    assert dev.set_up() == dev.UNPACKED


def test_what_a_killed_start_left_is_swept_and_a_stale_host_replaced(dev, ran, archive):
    make_host(dev.STATE / "unpack-killed" / "ComfyUI")
    make_host(
        dev.UNPACKED,
        {**HOST_FILES, "comfyui_version.py": '__version__ = "0.22.0"\n', "gone.py": ""},
    )
    archive(vendored())
    dev.set_up()
    assert dev.unpacked_is_current() and not (dev.UNPACKED / "gone.py").exists()
    assert not list(dev.STATE.glob("unpack-*"))


@pytest.mark.parametrize(
    "name, text", [("../../../escaped.py", ""), ("link", ("/",)), ("C:\\x.py", "")]
)
def test_unsafe_entries_are_refused(dev, ran, archive, tmp_path, capsys, name, text):
    archive({**vendored(), f"pkg-1/vendor/ComfyUI/{name}": text})
    assert dev.main(["test"]) == 1
    assert "unsafe entry" in one_line(capsys)
    assert not dev.UNPACKED.exists() and not list(tmp_path.rglob("escaped.py"))


def test_a_damaged_archive_is_one_sentence(dev, tmp_path):
    whole = make_archive(
        tmp_path / "whole.tar.gz", {"pkg-1/vendor/ComfyUI/main.py": "x = 1\n" * 5000}
    ).read_bytes()
    for number, content in enumerate((b"", whole[: len(whole) // 2], b"not a tar")):
        broken = tmp_path / f"{number}.tar.gz"
        broken.write_bytes(content)
        with pytest.raises(dev.Fail):
            dev.unpack(broken, tmp_path / "out")


def test_an_unknown_benchmark_lists_the_known_ones(dev, ran, capsys):
    folder = dev.ROOT / "benchmarks"
    folder.mkdir()
    (folder / "speed.py").write_text("def main():\n    pass\n")
    (folder / "peers.py").write_text("if __name__ == '__main__':\n    pass\n")
    (folder / "helper.py").write_text("def mainly():\n    pass\n")
    (folder / "_draft.py").write_text("def main():\n    pass\n")
    for package, file in (
        ("many", "__main__.py"),
        ("parts", "__init__.py"),
        ("_drafts", "__main__.py"),
    ):
        (folder / package).mkdir()
        (folder / package / file).write_text("")
    (folder / "parts" / "cost.py").write_text("def main():\n    pass\n")
    for args in (["nope"], [], ["helper"], ["parts"], ["../dev"]):
        assert dev.main(["bench", *args]) == 2
        assert one_line(capsys).endswith("one of: cost, many, peers, speed.")
    assert not ran


def test_tools_and_trainings_have_names(dev, capsys):
    for file in ("tools/draw.py", "testbed/train/model.py"):
        path = dev.ROOT / file
        path.parent.mkdir(parents=True)
        path.write_text("def main():\n    pass\n")
    assert dev.named("tool") == {"draw": "tools.draw", "train_model": "testbed.train.model"}
    assert dev.main(["tool"]) == 2
    assert one_line(capsys).endswith("one of: draw, train_model.")


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_the_link_is_made_kept_and_repaired(dev, tmp_path, capsys):
    link = dev.base_directory() / "custom_nodes" / "ComfyUI-Unlearn"
    assert link.resolve() == dev.ROOT and (dev.BASE / "models").is_dir()
    made = link.lstat().st_mtime_ns
    dev.base_directory()
    assert link.lstat().st_mtime_ns == made
    for wrong in (tmp_path, tmp_path / "nowhere"):
        link.unlink()
        link.symlink_to(wrong)
        dev.base_directory()
        assert link.resolve() == dev.ROOT
    link.unlink()
    link.mkdir()
    with pytest.raises(dev.Fail, match="in the way"):
        dev.base_directory()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no exec")
def test_the_module_runs_with_the_hosts_nodes_and_our_helpers(dev, monkeypatch, tmp_path):
    host = make_host(dev.UNPACKED)
    for package, text in {
        host / "tests": "OWNER = 'host'",
        dev.ROOT / "nodes": "OWNER = 'pack'",
        dev.ROOT / "benchmarks": "",
    }.items():
        package.mkdir()
        (package / "__init__.py").write_text(text)
    (dev.ROOT / "testbed").mkdir()
    (dev.ROOT / "testbed" / "pack.py").write_text("OWNER = 'pack'")
    show = (
        "import nodes, os, sys\nfrom testbed import pack\n"
        "print(nodes.OWNER, pack.OWNER, os.environ['UNLEARN_BASE'], *sys.argv[1:])\nsys.exit(7)"
    )
    (dev.ROOT / "benchmarks" / "show.py").write_text(f"def main():\n    pass\n{show}")
    handed = []

    def execve(*args):
        handed.extend(args)
        raise SystemExit  # as exec, it does not come back

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "mine")
    monkeypatch.setattr(dev, "set_up", lambda: host)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(dev.os, "execve", execve)
        dev.main(["bench", "show", "a b", "-x"])
    python, command, env = handed
    assert python == dev.PYTHON and env["PYTHONPATH"].endswith(os.pathsep + "mine")
    answer = subprocess.run(
        [sys.executable, *command[1:]], env=env, stdout=subprocess.PIPE, text=True
    )  # dev.py has moved to ROOT
    assert answer.stdout.split() == ["host", "pack", str(dev.BASE), "a", "b", "-x"]
    assert answer.returncode == 7
