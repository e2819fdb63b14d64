"""The device that ComfyUI runs on here: the environment variable UNLEARN_DEVICE.

| variable | value |
|---|---|
| UNLEARN_DEVICE | `cpu` (also where it is not set), `cuda`, `mps` or `xpu` |
| UNLEARN_FLAGS | more of ComfyUI's flags, such as `--lowvram` or `--disable-dynamic-vram` |

On a GPU, ComfyUI manages memory as it does for an artist: with dynamic VRAM where it has that.
"""

import os
import shlex

CPU = "cpu"
DEVICES = (CPU, "cuda", "mps", "xpu")
SKIPPED = "needs a GPU: set UNLEARN_DEVICE to cuda, mps or xpu"
_prepared = False


def name():
    """The device asked for; SystemExit for one that does not exist."""
    chosen = os.environ.get("UNLEARN_DEVICE", "").strip().lower() or CPU
    if chosen not in DEVICES:
        raise SystemExit(f"UNLEARN_DEVICE is '{chosen}'; set it to one of {', '.join(DEVICES)}.")
    return chosen


def on_gpu():
    """Whether a GPU was asked for."""
    return name() != CPU


def flags():
    """The flags that start ComfyUI on this device."""
    return [*([] if on_gpu() else ["--cpu"]), *shlex.split(os.environ.get("UNLEARN_FLAGS", ""))]


def absent():
    """Why torch cannot use the device, as one sentence, or ''."""
    import torch

    there = {
        CPU: True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    if there[name()]:
        return ""
    return (
        f"UNLEARN_DEVICE is '{name()}' and torch {torch.__version__} finds no such device; check "
        "the driver, or unset UNLEARN_DEVICE."
    )


def prepare(cpu=True):
    """Sets ComfyUI's modules in this process to the device. Call it before they are imported.

    cpu: whether they run on the CPU where UNLEARN_DEVICE is not set; otherwise ComfyUI chooses.
    Raises SystemExit where there is no such device.
    """
    global _prepared
    if _prepared:
        return
    _prepared = True
    if not os.environ.get("UNLEARN_DEVICE") and not cpu:
        return
    if absent():
        raise SystemExit(absent())
    take_flags(flags())
    if on_gpu():
        _start_dynamic_vram()


def take_flags(given):
    """Sets ComfyUI's arguments as if it had been started with these flags."""
    from comfy.cli_args import args, parser

    for key, value in vars(parser.parse_args(given)).items():
        if value != parser.get_default(key):
            setattr(args, key, value)


def _start_dynamic_vram():
    """What ComfyUI's main.py does at its start, which a test in process goes round."""
    import comfy_aimdo.control
    from comfy.cli_args import args, enables_dynamic_vram

    if enables_dynamic_vram():
        comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management as mm
    import comfy.model_patcher

    usable = args.enable_dynamic_vram or (mm.is_nvidia() and not mm.is_wsl())
    if not enables_dynamic_vram() or not usable:
        return
    if comfy_aimdo.control.init_devices(d.index for d in mm.get_all_torch_devices()):
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True


def skip_without_gpu(items):
    """Skips the pytest items marked `gpu` where no GPU was asked for."""
    if on_gpu():
        return
    import pytest

    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=SKIPPED))


def patcher(model):
    """A MODEL around a model of ComfyUI's, of the class that its loaders use on this device."""
    import comfy.model_management as mm
    import comfy.model_patcher

    return comfy.model_patcher.CoreModelPatcher(
        model, mm.get_torch_device(), mm.unet_offload_device()
    )
