"""Putting a patch on a model: every key must match, the base should be the one it was made for."""

import json

from ..errors import UnlearnError
from . import bypass, weights
from .adapters import LowRank, Prune

MANIFEST = "unlearn"  # of the attachment that follows a patched model through clones, LoRA loaders and the like


def check_keys(model, patch):
    """Raises UnlearnError naming the weights of a patch that the MODEL lacks or has in another shape."""
    have = model.model.state_dict()
    missing = sorted(
        {
            key
            for key in (*(k for k, _ in patch.edits), *patch.fingerprint.samples)
            if key not in have
        }
    )
    if missing:
        named = ", ".join(missing[:3]) + (
            f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        )
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
    if any(
        sample.shape != found.samples[key].shape
        for key, sample in patch.fingerprint.samples.items()
    ):
        raise UnlearnError(
            "The patch holds a fingerprint of weights of another size than the input 'model' has; make the patch again."
        )
    difference = patch.fingerprint.difference(found)
    if difference <= patch.fingerprint.TOLERANCE:
        return ""
    return (
        f"The patch was made for another base model (its weights differ by {difference:.0%}); "
        "make it again from this model, or expect damage."
    )


def apply(model, patch, strength=1.0, strict=False, quantised="auto"):
    """(clone of the MODEL with the patch at `strength`, warning text or ''); the model itself is not changed.

    quantised: where low-rank edits go; 'auto' beside the layers whose weights would be rounded into 8 or 4 bits, 'bypass' beside all
    layers, 'weights' into the weights. Raises UnlearnError on keys that do not match, and on another base model when `strict`.
    """
    warning = check(model, patch)
    if strict and warning:
        raise UnlearnError(warning)
    patched, beside = model.clone(), dict(weights.bypass_edits(model))
    for key, edit in (
        patch.edits if strength else ()
    ):  # strength 0 must not even round; one by one: a key may stand twice in a stack
        if _runs_beside(model, key, edit, quantised):
            beside[key] = (*beside.get(key, ()), (edit, strength))
        else:  # pruning alone does not commute with what was added before it, so that goes into the weight first
            into_weight(
                patched,
                key,
                (*(beside.pop(key, ()) if isinstance(edit, Prune) else ()), (edit, strength)),
            )
    bypass.put(patched, beside)
    record = tuple({**p, "strength": strength} for p in patch.provenance)
    patched.set_attachments(MANIFEST, manifest(model) + record)
    return patched, warning


def _runs_beside(model, key, edit, quantised):
    # Rounding keeps the zeros of a Prune exactly. A Delta takes no direction out whole: rounding leaves its layers about as far from the
    # sum as the format's own rounding did (measured: 3.8 % against 3.0 in fp8, 1.7 against 1.1 in int8, 18 against 10 in nvfp4), and
    # beside the layer it would cost a second matrix of full size.
    if not isinstance(edit, LowRank) or quantised == "weights" or not bypass.possible(model, key):
        return False
    return quantised == "bypass" or bypass.rounds(model, key)


def into_weight(patched, key, edits):
    """Adds ((edit, strength), ...) to a weight of a MODEL that is the caller's own clone."""
    for edit, strength in edits:
        if not patched.add_patches({key: edit}, strength):
            raise UnlearnError(
                f"The input 'model' did not accept a patch for its weight '{key}'; use a model loaded by a stock loader."
            )


def baked(model):
    """A clone of a MODEL with the edits that run beside its layers in its weights instead, as files need them; or the MODEL itself."""
    beside = weights.bypass_edits(model)
    if not beside:
        return model
    clone = model.clone()
    for key, edits in beside.items():
        into_weight(clone, key, edits)
    bypass.put(clone, {})
    return clone


def manifest(model):
    """What was applied to a MODEL, first to last: the provenance of each patch with its strength; () for a plain model."""
    return tuple(model.get_attachment(MANIFEST) or ())


def manifest_as_json(model):
    """The manifest as lists and objects that JSON knows, for a file's metadata."""
    return json.loads(json.dumps(manifest(model), default=str))


def describe(patch, strength, model=None):
    """A line per patch in the stack: method, concepts, how many weights, size; and what of it runs beside the layers of a patched MODEL."""
    lines = [
        f"{p['method']}: forgets {', '.join(p['concepts'][:8])}{' ...' if len(p['concepts']) > 8 else ''}"
        for p in patch.provenance
    ]
    keys = len({key for key, _ in patch.edits})
    lines.append(
        f"{len(patch.edits)} edits on {keys} weights at strength {strength:g}, {patch.nbytes / 2**20:.2f} MB"
    )
    if model is not None and (beside := weights.bypass_edits(model)):
        lines.append(
            f"{sum(map(len, beside.values()))} low-rank edits of {len(beside)} weights run beside their layers (bypass), where rounding "
            "into 8 or 4 bits does not reach them. Save Checkpoint and merges do not see them: use Save Unlearned Checkpoint, or set "
            "quantised to 'weights', best on an fp16 or bf16 base model, for both round."
        )
    return "\n".join(lines)
