"""Nothing that comes from a network or a disk is ever run: our sources hold no call that could."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("deepflow", "services", "tools")

# Modules that make objects, and so run code, out of bytes; multiprocessing pickles what it sends.
MODULES = {
    *("pickle", "cPickle", "_pickle", "pickletools", "dill", "cloudpickle", "joblib"),
    *("marshal", "shelve", "dbm", "jsonpickle", "multiprocessing", "xmlrpc", "code", "runpy"),
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    *("torch.load", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader"),
    *("yaml.UnsafeLoader", "yaml.FullLoader", "os.system", "os.popen", "builtins.eval"),
    *("builtins.exec", "builtins.compile", "importlib.machinery.SourceFileLoader"),
}
# Keywords that open such a door in calls that are harmless without them.
KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}


def findings(source: str) -> Iterator[tuple[int, str]]:
    """(line, what), for every use of something that runs what it reads."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        for module in _modules(node):
            if module.split(".")[0] in MODULES or module in ATTRIBUTES:
                yield node.lineno, module  # type: ignore[attr-defined]
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.lineno, node.id
        if isinstance(node, ast.Attribute) and (path := _path(node, names)) in ATTRIBUTES:
            yield node.lineno, path
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS and not _is_false(keyword.value):
                    yield node.lineno, keyword.arg
            if _path(node.func, names) == "importlib.import_module" and not _is_fixed(node):
                yield node.lineno, "import_module of what is not written here"


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name -> what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for it in node.names:
                yield (
                    (it.asname or it.name.split(".")[0]),
                    (it.name if it.asname else it.name.split(".")[0]),
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for it in node.names:
                yield (it.asname or it.name), f"{node.module}.{it.name}"


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [it.name for it in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{it.name}" for it in node.names)]
    return []


def _path(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_path(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _is_fixed(call: ast.Call) -> bool:
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant)


def sources() -> list[Path]:
    found = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert len(found) > 300
    return found


# It reads the names of our own modules from our own sources, to write a page of the docs.
KNOWN = {("tools/metrics_page.py", "import_module of what is not written here")}


def test_nothing_that_was_read_is_run() -> None:
    found = {
        (str(file.relative_to(ROOT)), what)
        for file in sources()
        for _, what in findings(file.read_text())
    }
    assert found == KNOWN


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import multiprocessing.connection",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "import torch\nread = torch.load",
        "import yaml\nyaml.load('x', yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import os\nos.system('x')",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module\nimport_module('a' + b)",
    ],
)
def test_each_way_to_run_it_is_found(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "model.eval()",
        "import yaml\nyaml.safe_load('x')",
        "import importlib\nimportlib.import_module('torch')",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import json\njson.load(file)",
        "from safetensors.torch import load_file",
    ],
)
def test_what_runs_nothing_is_let_be(source: str) -> None:
    assert not list(findings(source))
