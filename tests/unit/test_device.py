"""The switch UNLEARN_DEVICE: what ComfyUI is started with, what is refused, what is skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import device, server

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("UNLEARN_HOST", ROOT / ".host" / "ComfyUI"))
MARKED = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("n", range(3))
def test_on_a_gpu(n):
    pass

def test_anywhere():
    pass
"""
CONFTEST = """
from testbed import device

def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: as in the repository")

def pytest_collection_modifyitems(config, items):
    device.skip_without_gpu(items)
"""
FLAGS_IN_PROCESS = """
from testbed import device
device.take_flags(device.flags())
from comfy.cli_args import args, enables_dynamic_vram
print(args.cpu, args.lowvram, args.disable_dynamic_vram, enables_dynamic_vram())
"""


def ran(code, **environment):
    """What a Python process prints that has the host on its path; its exit status, and stderr."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("UNLEARN_DEV")}
    env |= {"PYTHONPATH": os.pathsep.join([str(HOST), str(ROOT)]), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    return done.stdout.strip(), done.returncode, done.stderr


@pytest.fixture
def chosen(monkeypatch):
    def choose(name, flags=""):
        monkeypatch.setenv("UNLEARN_DEVICE", name)
        monkeypatch.setenv("UNLEARN_FLAGS", flags)

    return choose


def test_the_cpu_is_the_default(monkeypatch):
    monkeypatch.delenv("UNLEARN_DEVICE", raising=False)
    monkeypatch.delenv("UNLEARN_FLAGS", raising=False)
    assert device.flags() == ["--cpu"] and "--cpu" in server.command(1)


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu", " CUDA "])
def test_on_a_gpu_comfyui_manages_memory_as_it_always_does(chosen, name):
    chosen(name)
    assert device.flags() == [] and "--cpu" not in server.command(1)


@pytest.mark.parametrize(
    "flags", ["--lowvram", "--novram", "--highvram", "--disable-dynamic-vram --reserve-vram 1"]
)
def test_more_flags_are_passed_on(chosen, flags):
    chosen("cuda", flags)
    command = server.command(1, "--port", "2")
    assert set(flags.split()) < set(command) and "--cpu" not in command


def test_an_unknown_device_is_refused_in_one_sentence(chosen):
    chosen("gpu")
    with pytest.raises(SystemExit, match="set it to one of cpu, cuda, mps, xpu"):
        device.flags()
    done = subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), "test"],
        env={**os.environ, "UNLEARN_DEVICE": "gpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "dev.py: UNLEARN_DEVICE is 'gpu'; set it to one of cpu, cuda, mps, xpu.\n"
    )


def test_a_device_that_torch_does_not_find_is_refused_in_one_sentence(chosen, monkeypatch):
    import torch

    chosen("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_prepared", False)
    with pytest.raises(SystemExit, match="finds no such device; check the driver"):
        device.prepare()


def test_tests_for_a_gpu_are_skipped_elsewhere_with_one_line(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_marked.py").write_text(MARKED)
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "--rootdir", "."]
    for name, expected in (("", "1 passed, 3 skipped"), ("cuda", "4 passed")):
        env = {**os.environ, "UNLEARN_DEVICE": name, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert expected in done.stdout, done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if device.SKIPPED in line]
        assert len(lines) == (not name)


@pytest.mark.host
def test_flags_reach_comfyui_in_process():
    assert ran(FLAGS_IN_PROCESS)[0] == "True False False False"
    for flags, expected in (
        ("", "False False False True"),
        ("--lowvram", "False True False True"),
        ("--disable-dynamic-vram", "False False True False"),
    ):
        printed, code, said = ran(FLAGS_IN_PROCESS, UNLEARN_DEVICE="cuda", UNLEARN_FLAGS=flags)
        assert (printed, code) == (expected, 0), said


@pytest.mark.host
def test_a_flag_that_comfyui_does_not_know_ends_the_process():
    _, code, said = ran(FLAGS_IN_PROCESS, UNLEARN_DEVICE="cuda", UNLEARN_FLAGS="--none-such")
    assert code == 2 and "--none-such" in said
