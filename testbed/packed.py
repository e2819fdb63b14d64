"""A double of the GGUF loader's models: packed weights that only their own layers can read.

It behaves as ComfyUI-GGUF does (read from its source, 2025-12): a weight is a tensor of bytes with
`tensor_type` and the shape it stands for; patches hang on that tensor, and the layer unpacks and
patches it at every call; the patcher's method that patches a weight has no `return_weight`.
"""

import torch

EIGHT_BITS = "Q8"


class PackedTensor(torch.Tensor):
    """Bytes [d_out, d_in + 4]: int8 numbers, and a float32 scale for each row."""

    @staticmethod
    def of(weight):
        w = weight.detach().float()
        scale = w.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        numbers = (w / scale).round().to(torch.int8).view(torch.uint8)
        return PackedTensor._wrapped(
            torch.cat([numbers, scale.contiguous().view(torch.uint8)], 1), tuple(w.shape), []
        )

    @staticmethod
    def _wrapped(data, shape, patches):
        made = data.as_subclass(PackedTensor)
        made.tensor_type, made.tensor_shape, made.patches = EIGHT_BITS, shape, patches
        return made

    @property
    def shape(self):
        return torch.Size(self.tensor_shape)

    def to(self, *args, **kwargs):
        data = self.as_subclass(torch.Tensor).to(*args, **kwargs)
        return PackedTensor._wrapped(data, self.tensor_shape, list(self.patches))

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self

    def unpacked(self):
        """The weight, float32 [d_out, d_in], without patches."""
        data = self.as_subclass(torch.Tensor)
        d_in = self.tensor_shape[1]
        scale = data[:, d_in:].contiguous().view(torch.float32)
        return data[:, :d_in].contiguous().view(torch.int8).float() * scale


class PackedLinear(torch.nn.Module):
    """A linear layer that unpacks its weight and adds its patches at every call."""

    comfy_cast_weights = True

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.nn.Parameter(PackedTensor.of(linear.weight), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        import comfy.lora

        weight = self.weight.unpacked()
        for patches, key in self.weight.patches:
            weight = comfy.lora.calculate_weight(patches, weight, key)
        bias = None if self.bias is None else self.bias.to(x)
        return torch.nn.functional.linear(x, weight.to(x), bias)


def packed(model, keys):
    """A MODEL with the layers of these weight keys packed in place, and a patcher to go with it."""
    import comfy.model_patcher
    import comfy.utils

    class Patcher(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
            weight = comfy.utils.get_attr(self.model, key)
            if not isinstance(weight, PackedTensor):
                return super().patch_weight_to_device(key, device_to, inplace_update)
            if key in self.patches:
                moved = weight.to(device_to)
                moved.patches = [(self.patches[key], key)]
                comfy.utils.set_attr_param(self.model, key, moved)

        def unpatch_model(self, device_to=None, unpatch_weights=True):
            if unpatch_weights:
                for weight in self.model.parameters():
                    if getattr(weight, "patches", None):
                        weight.patches = []
            return super().unpatch_model(device_to, unpatch_weights)

        def load(self, *args, force_patch_weights=False, **kwargs):
            return super().load(*args, force_patch_weights=True, **kwargs)

    for key in keys:
        path = key.removesuffix(".weight")
        parent, _, name = path.rpartition(".")
        setattr(
            model.model.get_submodule(parent), name, PackedLinear(model.model.get_submodule(path))
        )
    return Patcher(model.model, model.load_device, model.offload_device)
