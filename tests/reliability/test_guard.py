"""What the shipped pack must never do.

It must not change the host, run or unpickle what it reads, or reach out of the machine. The source
is parsed, not searched for words, and each rule is shown to find what it is for. What happens at
run time is checked as well.
"""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [
    ROOT / "__init__.py",
    *sorted((ROOT / "nodes").rglob("*.py")),
    *sorted((ROOT / "unlearn").rglob("*.py")),
    *sorted((ROOT / "kernels").rglob("*.py")),
]
HOST = {
    "comfy",
    "comfy_api",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "comfy_kitchen",
    "comfyui_version",
    "app",
    "execution",
}
HOST |= {"folder_paths", "latent_preview", "main", "nodes", "node_helpers", "server", "utils"}
LIBRARIES = {
    "torch",
    "numpy",
    "safetensors",
    "filelock",
    "PIL",
    "transformers",
    "builtins",
    "sys",
    "os",
}
CHANGING = {
    "append",
    "extend",
    "insert",
    "update",
    "pop",
    "popitem",
    "clear",
    "remove",
    "setdefault",
    "add",
    "discard",
    "sort",
    "reverse",
}
# No part of the pack needs these: code and network first, then what reads pickles, then what starts
# processes.
IMPORTS = {
    "importlib",
    "imp",
    "runpy",
    "code",
    "codeop",
    "ctypes",
    "cffi",
    "socket",
    "ssl",
    "urllib",
    "urllib3",
    "http",
    "requests",
    "aiohttp",
}
IMPORTS |= {
    "httpx",
    "websocket",
    "websockets",
    "ftplib",
    "smtplib",
    "telnetlib",
    "xmlrpc",
    "webbrowser",
    "asyncio",
    "huggingface_hub",
    "pip",
}
IMPORTS |= {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "zipfile",
    "tarfile",
    "subprocess",
    "pty",
}
IMPORTS |= {"multiprocessing", "unittest", "mock", "gc", "inspect"}
BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint", "input", "globals", "print"}
CALLS = {
    "torch.load",
    "torch.save",
    "torch.hub",
    "torch.jit",
    "torch.manual_seed",
    "torch.seed",
    "numpy.load",
    "np.load",
    "np.save",
}
CALLS |= {
    "os.system",
    "os.popen",
    "os.startfile",
    "os.fork",
    "os.kill",
    "torch.set_default_dtype",
    "torch.set_default_device",
}
CALLS |= {
    "random.seed",
    "np.random.seed",
    "numpy.random.seed",
    "torch.cuda.manual_seed",
    "torch.use_deterministic_algorithms",
}


def chain(node):
    """'a.b.c' of an attribute chain without its subscripts; '' unless it begins with a name."""
    parts = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def foreign(tree):
    """Names that stand for modules, classes and values of the host and of libraries.

    They are imported, or assigned from such a name.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.partition(".")[0]
                for a in node.names
                if a.name.partition(".")[0] in HOST | LIBRARIES
            }
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and node.module.partition(".")[0] in HOST | LIBRARIES
        ):
            found |= {a.asname or a.name for a in node.names}
    for _ in range(3):  # what is taken out of a foreign module is foreign
        for node in ast.walk(tree):
            if isinstance(node, (ast.Assign, ast.NamedExpr)):
                value, targets = (
                    node.value,
                    node.targets if isinstance(node, ast.Assign) else [node.target],
                )
                taken = chain(value)
                if isinstance(value, ast.Call) and chain(value.func) in (
                    "sys.modules.get",
                    "getattr",
                ):
                    taken = (
                        chain(value.func)
                        if chain(value.func) != "getattr"
                        else chain(value.args[0])
                    )
                if taken.partition(".")[0] in found and taken.partition(".")[2]:
                    found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def changes_of_others(tree):
    """(line, what) of everything that changes the host or a library.

    These are assignments, deletions and calls of methods that change their object.
    """
    names, found = foreign(tree), []
    for node in ast.walk(tree):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete, ast.For)):
            flat = [part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])]
            found += [
                (node.lineno, ast.unparse(t))
                for t in flat
                if isinstance(t, (ast.Attribute, ast.Subscript))
                and chain(t).partition(".")[0] in names
            ]
        if isinstance(node, ast.Call):
            name = chain(node.func)
            if (
                name in ("setattr", "delattr", "object.__setattr__")
                and node.args
                and chain(node.args[0]).partition(".")[0] in names
            ):
                found.append((node.lineno, ast.unparse(node)))
            owner, _, method = name.rpartition(".")
            if (
                method in CHANGING
                and "." in owner
                and owner.partition(".")[0] in names
                and not owner.startswith("os.path")
            ):
                found.append((node.lineno, ast.unparse(node)))
    return found


def imports_only_its_own(tree):
    """Whether a module uses importlib for nothing but files of its own folder.

    These are calls of `importlib.import_module(f".{...}", __name__)`.
    """
    own = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or chain(node.func) != "importlib.import_module":
            continue
        name, package = node.args if len(node.args) == 2 else (None, None)
        relative = isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant)
        if relative and name.values[0].value == "." and ast.unparse(package) == "__name__":
            own.append(node.func.value)
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "importlib"]
    return bool(own) and len(own) == len(used)


def forbidden(tree):
    """(line, what) of every import, builtin and call that the pack does without."""
    found = []
    own = {"importlib"} if imports_only_its_own(tree) else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                (node.lineno, a.name)
                for a in node.names
                if a.name.partition(".")[0] in IMPORTS and a.name not in own
            ]
        if isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.lineno, node.module)] * (node.module.partition(".")[0] in IMPORTS)
            found += [
                (node.lineno, f"{node.module}.{a.name}")
                for a in node.names
                if f"{node.module}.{a.name}" in CALLS
            ]
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append((node.lineno, node.id))
        if isinstance(node, ast.Attribute):
            name = chain(node)
            if (
                name in CALLS
                or name.startswith(("os.exec", "os.spawn", "sys.path", "os.environ"))
                or node.attr in ("cuda", "weights_only")
            ):
                if not name.startswith("torch.cuda"):
                    found.append((node.lineno, name or f".{node.attr}"))
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_source_changes_nobody_and_runs_nothing(path):
    source = path.read_text(encoding="utf-8")
    assert source.isascii()  # scanners of other packs and consoles on Windows read cp1252
    tree = ast.parse(source)
    assert not changes_of_others(tree) and not forbidden(tree)
    for node in ast.walk(
        tree
    ):  # ComfyUI gives the pack's folder a name of its own, and `import nodes` is the host's
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.partition(".")[0] not in (
                "nodes",
                "unlearn",
                "kernels",
                "unlearn_pack",
            ), (
                path,
                node.lineno,
            )


@pytest.mark.parametrize(
    "source",
    [
        "import comfy.samplers\ncomfy.samplers.KSampler.sample = f",
        "import comfy.sd as sd\nsd.load = f",
        "from comfy.weight_adapter import adapters\nadapters[0] = f",
        "import comfy.weight_adapter\ncomfy.weight_adapter.adapters.append(f)",
        "import nodes\nnodes.NODE_CLASS_MAPPINGS['x'] = f",
        "import nodes\nnodes.NODE_CLASS_MAPPINGS.update(x=f)",
        "import execution\nsetattr(execution, 'validate', f)",
        "import folder_paths\nfolder_paths.models_dir, x = 'a', 'b'",
        "import folder_paths\nfolder_paths.folder_names_and_paths['x'] = f",
        "import sys\nrunning = sys.modules.get('server')\nrunning.PromptServer.instance = f",
        "import comfy.ops\nlinear = comfy.ops.manual_cast.Linear\nlinear.forward = f",
        "import torch\ntorch.nn.Linear.forward = f",
        "import torch\ndel torch.nn.Linear.forward",
        "import latent_preview\nlatent_preview.n += 1",
    ],
)
def test_a_change_of_others_is_seen(source):
    assert changes_of_others(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(x)",
        "f = compile",
        "import pickle",
        "from urllib.request import urlopen",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import os\nos.system('x')",
        "import os\nos.execv('x', [])",
        "import socket as s",
        "x.cuda()",
        "import torch\nx.to(1).cuda()",
        "import subprocess",
        "import requests",
        "import torch\ntorch.manual_seed(1)",
        "import sys\nsys.path.insert(0, 'x')",
        "__import__('os')",
        "from http import client",
        "import asyncio",
        "import importlib",
        "import importlib as i\ni.import_module(f'.{x}', __name__)",
        "import importlib\nimportlib.import_module(x)",
        "import importlib\nimportlib.import_module(f'.{x}', package)",
        "import importlib\nimportlib.import_module(f'os.{x}', __name__)",
        "import importlib\nf = importlib\nimportlib.import_module(f'.{x}', __name__)",
    ],
)
def test_a_forbidden_call_is_seen(source):
    assert forbidden(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nmodel.eval()\nx = torch.cuda.is_available()\n"
        "m = model.clone()\nm.model_options = {}",
        "import folder_paths\nfolder_paths.add_model_folder_path('a', 'b')\n"
        "keep = []\nkeep.append(folder_paths.models_dir)",
        "import comfy.utils\nbar = comfy.utils.ProgressBar(1)\nbar.update(1)",
        "import importlib\nimportlib.import_module(f'.{x}', __name__)",
    ],
)
def test_what_is_allowed_is_let_pass(source):
    assert not forbidden(ast.parse(source)) and not changes_of_others(ast.parse(source))


def snapshot(roots):
    """Name -> id of every function, class and method in the loaded modules under some roots."""
    import sys
    import types

    found = {}
    for name, module in list(sys.modules.items()):
        if module is None or name.partition(".")[0] not in roots:
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, (types.FunctionType, type)):
                found[name, key] = id(value)
            if isinstance(value, type) and value.__module__ == name:
                methods = {
                    k: v
                    for k, v in list(vars(value).items())
                    if callable(v) or isinstance(v, (classmethod, staticmethod, property))
                }
                found.update({(name, key, k): id(v) for k, v in methods.items()})
    return found


LOADED = (
    inspect.getsource(snapshot)
    + """
import asyncio, sys
from comfy.cli_args import args
args.cpu = True
import nodes, execution, server, folder_paths, latent_preview, comfy.sd, comfy.samplers
import comfy_extras.nodes_tcfg, comfy.weight_adapter
import torch, safetensors.torch, filelock, comfy.sample
import comfy.ldm.modules.diffusionmodules.openaimodel
roots = set(sys.argv[2].split(","))
before = snapshot(roots)
assert asyncio.run(nodes.load_custom_node(sys.argv[1], module_parent="custom_nodes"))
after = snapshot(roots)
changed = [k for k, v in before.items() if after.get(k) != v]
found = nodes.NODE_CLASS_MAPPINGS
ours = sys.argv[1].replace(".", "_x_")
kinds = {n for n in found if found[n].__module__.startswith(ours)}
print(len(before), len(kinds), changed[:5])
"""
)


def test_loading_the_pack_leaves_the_host_as_it_was(tally):
    from testbed import pack

    pack.load()
    path = [os.environ.get("UNLEARN_HOST", str(ROOT / ".host" / "ComfyUI"))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    roots = ",".join(HOST | {"torch", "safetensors", "filelock", "numpy"})
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, str(ROOT), roots],
        env=env,
        cwd=path[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    seen, nodes, changed = ran.stdout.strip().splitlines()[-1].split(" ", 2)
    assert int(seen) > 5000 and int(nodes) == len(pack.module("nodes").NODES) and changed == "[]"
    tally("cells")


def test_working_leaves_the_host_and_the_model_as_they_were(loaded, tally):
    """Solving, measuring, pruning and applying leave the host and the model's own weights alone."""
    import comfy.model_management
    import torch

    from testbed import pack

    scapre, saliency, masks, patching, text = (
        pack.module(f"unlearn.{n}")
        for n in (
            "closed_form.solve",
            "pruning.collection",
            "pruning.masks",
            "host.patching",
            "concepts.notation",
        )
    )
    model, clip, _ = loaded
    comfy.model_management.load_models_gpu([model])  # another test's patched clone may be in place
    whole = {k: v.clone() for k, v in model.model.state_dict().items()}

    def state():
        return (
            dict(model.patches),
            list(model.object_patches),
            sum(len(m._forward_hooks) for m in model.model.modules()),
        )

    before, other = snapshot(HOST | {"torch", "safetensors"}), state()
    forget = text.parse("fox -> animal", "cat")
    settings = scapre.SolveSettings(prior=False)
    patch = scapre.solve(model, clip, forget, settings)[0]
    found, _ = saliency.collect(
        model,
        clip,
        forget,
        prompts=1,
        steps=2,
        window=1,
        size=64,
        cfg=1.0,
        ceiling=0.1,
        score="wanda",
    )
    patched, _ = patching.apply(model, patch + masks.fuse([found], r2=0.05)[0], 0.8)
    after = snapshot(HOST | {"torch", "safetensors"})
    assert [k for k, v in before.items() if after.get(k) != v] == [] and len(before) > 3000
    comfy.model_management.load_models_gpu([model])
    assert patched.patches and state() == other
    assert all(torch.equal(v, whole[k]) for k, v in model.model.state_dict().items())
    tally("cells")
