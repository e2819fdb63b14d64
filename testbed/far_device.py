"""A second device in this process, named `far`, whose tensors compute on the CPU.

It is torch's own PrivateUse1 backend in Python. A tensor there says `far:0`; its numbers lie in a
CPU tensor behind it, so code runs to its end with true results and true gradients. As on a GPU, an
operation that mixes devices fails. It is stricter than CUDA in one point: an index on the CPU
fails too, because on a GPU it makes the device wait for a copy.

torch's FakeTensorMode has no numbers, so it stops at the first `float(x)` or `nonzero`, and it lets
an index on the CPU and an optimiser's `step` on the CPU pass.

    with far_device.open() as seen:
        weight = far_device.put(weight)
    seen.waits     how often the CPU waited for the device (item, nonzero, a copy to the CPU)
    seen.peak      bytes on the device at the most
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = "far"
ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {".host", ".venv"}
aten = torch.ops.aten
# What moves numbers between devices, and so may name two of them.
MOVES = {aten._to_copy.default, aten.copy_.default, aten.to.other}
# What makes the CPU wait until the device has finished.
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
SDP_MATH = 0  # the attention that is written in plain operations


class Misplaced(RuntimeError):
    """An operation met tensors on two devices, or a generator of another one."""


class Seen:
    """What happened on the device while it was open."""

    def __init__(self):
        self.waits = 0
        self.by_line: Counter[str] = Counter()  # line of the pack -> waits
        self.live = self.peak = 0
        self._storages: dict[int, list[int]] = {}

    def wait(self):
        self.waits += 1
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            ours = path.is_relative_to(ROOT) and path != Path(__file__)
            if ours and not NOT_OURS & set(path.parts):
                self.by_line[f"{path.relative_to(ROOT)}:{frame.lineno} {frame.line}"] += 1
                return

    def take(self, tensor):
        """Counts the storage behind a new tensor of the device."""
        storage = tensor.elem.untyped_storage()
        at = storage._cdata
        entry = self._storages.setdefault(at, [storage.nbytes(), 0])
        if not entry[1]:
            self.live += entry[0]
            self.peak = max(self.peak, self.live)
        entry[1] += 1
        weakref.finalize(tensor, self._drop, at, storage)

    def _drop(self, at, storage):
        # `storage` is held until here, so that its address is not given to another one before.
        entry = self._storages[at]
        entry[1] -= 1
        if not entry[1]:
            self.live -= self._storages.pop(at)[0]


_seen = Seen()


class FarTensor(torch.Tensor):
    """A tensor on the device; `elem` holds its numbers on the CPU."""

    elem: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem):
        assert not isinstance(elem, FarTensor)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=torch.device(NAME, 0),
        )
        made.elem = elem
        _seen.take(made)
        return made

    def tolist(self):
        _seen.wait()
        return self.elem.tolist()

    def untyped_storage(self):
        return self.elem.untyped_storage()

    def __repr__(self, **_):
        return f"FarTensor({self.elem!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees the operations that make tensors on the device from none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _is_far(value):
    return isinstance(value, FarTensor)


def _wants_far(func, flat):
    """Whether the result is asked for on the device; None where no device is named."""
    if func is aten.to.other:
        return _is_far(flat[1])
    devices = [x for x in flat if isinstance(x, torch.device)]
    return devices[0].type == NAME if devices else None


def _check(func, tensors, wants, kwargs):
    """Raises Misplaced where tensors and generators are not all on one device."""
    far = [t for t in tensors if _is_far(t)]
    near = [t for t in tensors if not _is_far(t) and t.device.type == "cpu"]
    generator = kwargs.get("generator")
    on_far = bool(far) if wants is None else wants
    if generator is not None and on_far and generator.device.type == "cpu":
        raise Misplaced(f"{func}: a generator of the CPU for numbers on the device")
    if func in MOVES or not far or not near:
        return
    pointwise = torch.Tag.pointwise in func.tags
    if all(t.dim() == 0 for t in near) and pointwise and not _is_optimiser(func):
        return
    shapes = [(str(t.device), list(t.shape)) for t in tensors]
    raise Misplaced(f"{func}: tensors on two devices, {shapes}")


def _is_optimiser(func):
    return "_fused_" in func.name()


def _bare(value):
    """What stands for a value on the CPU."""
    if _is_far(value):
        return value.elem
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _run(func, args, kwargs):
    if func is aten._has_compatible_shallow_copy_type.default:
        return _is_far(args[0]) == _is_far(args[1])  # whether `.data` can be set
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    had_far, wants = any(map(_is_far, tensors)), _wants_far(func, flat)
    _check(func, tensors, wants, kwargs)
    if not had_far and not wants:
        return func(*args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return SDP_MATH
    known = {id(x.elem): x for x in flat if _is_far(x)}
    if had_far and (func in WAITS or wants is False):
        _seen.wait()
    if func is aten.copy_.default and not _is_far(args[0]):
        _seen.wait()
        args[0].copy_(args[1].elem)
        return args[0]
    bare_args, bare_kwargs = tree_unflatten([_bare(x) for x in flat], spec)
    if wants is not None:
        bare_kwargs.pop("pin_memory", None)
    out = func(*bare_args, **bare_kwargs)
    if wants is False:
        # Without a move the numbers would be shared between the devices.
        return out.clone() if any(out is x.elem for x in tensors if _is_far(x)) else out

    def wrap(value):
        if not isinstance(value, torch.Tensor):
            return value
        mine = known.get(id(value))  # an operation in place gives its argument back
        return FarTensor(value) if mine is None else mine

    return tree_map(wrap, out)


class _Module:
    """What torch asks of a device: `torch.far`."""

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def device_count():
        return 1

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.float16, torch.bfloat16]

    @staticmethod
    def is_initialized():
        return True

    @staticmethod
    def synchronize(device=None):
        pass

    @staticmethod
    def _is_in_bad_fork():
        return False

    @staticmethod
    def manual_seed_all(seed):
        pass


_kept: list[torch.library.Library] = []


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return FarTensor(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return FarTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    target.elem.copy_(source.elem if _is_far(source) else source)
    return target


def register():
    """Makes the device known to torch; once in a process.

    It must be before the process's first backward pass, which makes a queue for each device.
    """
    from torch.utils import backend_registration

    if torch._C._get_privateuse1_backend_name() != NAME:
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
        library = torch.library.Library("aten", "IMPL")
        # `torch.tensor` moves its numbers to the device past every mode, by these three.
        library.impl("empty_strided", _empty_strided, "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        library.impl("empty.memory_format", _empty, "PrivateUse1")
        _kept.append(library)  # it takes its kernels back when it dies


def device():
    """torch.device of the device."""
    register()
    return torch.device(NAME, 0)


def put(value):
    """A tensor on the device, or a module whose tensors are moved there in place."""
    register()
    if isinstance(value, torch.nn.Module):
        for module in value.modules():
            for name, p in list(module._parameters.items()):
                if p is not None and not _is_far(p.data):
                    moved = torch.nn.Parameter(FarTensor(p.data), requires_grad=p.requires_grad)
                    module._parameters[name] = moved
            for name, b in list(module._buffers.items()):
                if b is not None and not _is_far(b):
                    module._buffers[name] = FarTensor(b)
        return value
    return FarTensor(value.detach())


def alias(tensor):
    """A new tensor of the device on the numbers of another one there."""
    return FarTensor(tensor.elem)


def patcher(model):
    """A MODEL around a model of ComfyUI's, of the class without dynamic VRAM, on the device."""
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(model, device(), torch.device("cpu"))


def set_memory(monkeypatch, far=2**34, main=2**34):
    """Tells ComfyUI how many bytes are free on the device and in main memory."""
    import comfy.model_management as mm

    def free(dev=None, torch_free_too=False):
        room = far if getattr(dev, "type", "") == NAME else main
        return (room, room) if torch_free_too else room

    monkeypatch.setattr(mm, "get_free_memory", free)
    monkeypatch.setattr(mm, "get_total_memory", free)


@contextlib.contextmanager
def open():
    """The device, with a Seen that counts from now on."""
    global _seen
    register()
    before, _seen = _seen, Seen()
    try:
        with _Factories():
            yield _seen
    finally:
        _seen = before
