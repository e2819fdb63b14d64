"""Putting a patch on a model: every key must match, the base should be the one it was made for."""

import json

from ..errors import UnlearnError
from . import weights

MANIFEST = "unlearn"  # of the attachment that follows a patched model through clones, LoRA loaders and the like


def check_keys(model, patch):
    """Raises UnlearnError naming the weights of a patch that the MODEL lacks or has in another shape."""
    have = model.model.state_dict()
    missing = sorted({key for key in (*(k for k, _ in patch.edits), *patch.fingerprint.samples) if key not in have})
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UnlearnError(
            f"The input 'model' lacks {len(missing)} of the weights the patch changes ({named}); "
            "use the architecture the patch was made for."
        )
    for key, edit in patch.edits:
        shape = weights.shape(model, key)
        if shape != edit.shape:
            raise UnlearnError(
                f"The input 'model' has weight '{key}' of shape {list(shape)} where the patch expects {list(edit.shape)}; "
                "use the architecture the patch was made for."
            )


def check(model, patch):
    """A warning when the patch was made for another base model than this MODEL, else ''; raises UnlearnError on keys that do not match."""
    check_keys(model, patch)
    found = weights.fingerprint(model, patch.fingerprint.samples.keys())
    if any(sample.shape != found.samples[key].shape for key, sample in patch.fingerprint.samples.items()):
        raise UnlearnError("The patch holds a fingerprint of weights of another size than the input 'model' has; make the patch again.")
    difference = patch.fingerprint.difference(found)
    if difference <= patch.fingerprint.TOLERANCE:
        return ""
    return (
        f"The patch was made for another base model (its weights differ by {difference:.0%}); "
        "make it again from this model, or expect damage."
    )


def apply(model, patch, strength=1.0, strict=False):
    """(clone of the MODEL with the patch at `strength`, warning text or ''); the model itself is not changed.

    Raises UnlearnError on keys that do not match, and on another base model when `strict`.
    """
    warning = check(model, patch)
    if strict and warning:
        raise UnlearnError(warning)
    patched = model.clone()
    for key, edit in patch.edits:  # one by one: a key may stand more than once in a stack
        if not patched.add_patches({key: edit}, strength):
            raise UnlearnError(f"The input 'model' did not accept a patch for its weight '{key}'; use a model loaded by a stock loader.")
    record = tuple({**p, "strength": strength} for p in patch.provenance)
    patched.set_attachments(MANIFEST, manifest(model) + record)
    return patched, warning


def manifest(model):
    """What was applied to a MODEL, first to last: the provenance of each patch with its strength; () for a plain model."""
    return tuple(model.get_attachment(MANIFEST) or ())


def manifest_as_json(model):
    """The manifest as lists and objects that JSON knows, for a file's metadata."""
    return json.loads(json.dumps(manifest(model), default=str))


def describe(patch, strength):
    """A line per patch in the stack: method, concepts, how many weights, size."""
    lines = [f"{p['method']}: forgets {', '.join(p['concepts'][:8])}{' ...' if len(p['concepts']) > 8 else ''}" for p in patch.provenance]
    keys = len({key for key, _ in patch.edits})
    return "\n".join([*lines, f"{len(patch.edits)} edits on {keys} weights at strength {strength:g}, {patch.nbytes / 2**20:.2f} MB"])
