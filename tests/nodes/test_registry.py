"""Nodes by name, nodes of other packages, and what importing the package takes."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import revsnn_nodes
import torch
from nodes_cases import ALL
from revsnn_nodes import make_node, node_factory, node_names, register_node, registry
from revsnn_nodes.registry import usable_node_names


@pytest.fixture
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_NODES", dict(registry._NODES))


def test_the_nine_names():
    """The short names of nodes/README.md, each making a node that runs; common tests take all that have a fixed tau."""
    assert node_names()[:9] == [
        "lif", "lif-checkpoint", "if", "plif", "revlif-stored", "revlif-revnet", "revlif", "revlif-anchored",
        "lif-carrier",
    ]  # fmt: skip
    assert sorted((*ALL, "if", "plif")) == sorted(node_names()[:9])
    for name in ("if", "plif"):
        assert make_node(name, step_mode="m")(torch.zeros(2, 1, 4)).shape == (2, 1, 4)
    for name in ALL:
        assert make_node(name, tau=3.0, step_mode="m")(torch.zeros(2, 1, 4)).shape == (2, 1, 4)


def test_unknown_names_get_a_suggestion():
    """A near name is suggested; where nothing is near, all are listed."""
    with pytest.raises(ValueError, match=r"`node` must be a registered name; got 'revlif-anchor'.*revlif-anchored"):
        make_node("revlif-anchor")
    with pytest.raises(ValueError, match="Pass one of lif, lif-checkpoint, "):
        node_factory("xyz")


@pytest.mark.usefixtures("_own_registry")
def test_registered_nodes_are_found():
    """register_node adds a factory to this process, at the end of the names."""
    register_node("mine", torch.nn.Identity)
    assert node_names()[-1] == "mine"
    assert isinstance(make_node("mine"), torch.nn.Identity)


def install(folder, module, code, *points):
    """A distribution of one module in a folder, with entry points in revsnn_bench.nodes."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[revsnn_bench.nodes]", *points]) + "\n")


@pytest.mark.usefixtures("_own_registry")
def test_nodes_of_installed_packages_are_found(tmp_path, monkeypatch):
    """A distribution with an entry point in revsnn_bench.nodes adds its node for everyone, loaded when first asked."""
    code = "import revsnn_nodes\nclass Foreign(revsnn_nodes.StandardLIF): pass\n"
    install(tmp_path, "foreign_nodes", code, "foreign = foreign_nodes:Foreign")
    monkeypatch.syspath_prepend(tmp_path)
    assert "foreign" in node_names()
    assert "foreign_nodes" not in sys.modules
    assert type(make_node("foreign", tau=3.0)).__name__ == "Foreign"
    assert node_names().count("foreign") == 1
    monkeypatch.delitem(sys.modules, "foreign_nodes")


@pytest.mark.usefixtures("_own_registry")
def test_a_broken_entry_point_is_left_out_with_a_warning(tmp_path, monkeypatch):
    """Asked for by name it is an error that names the package; a list of what can be used has all others."""
    points = ("torn = torn_nodes:Torn", "lost = no_such_module:Lost", "value = json:__name__")
    install(tmp_path, "torn_nodes", "raise_here = 1 / 0\n", *points)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"the node 'torn' must be importable; .* of the package torn-nodes is broken"):
        make_node("torn")
    with pytest.warns(RuntimeWarning, match="It is left out") as caught:
        names = usable_node_names()
    assert sorted(str(warning.message).split("'")[1] for warning in caught) == ["lost", "torn", "value"]
    assert names == [name for name in node_names() if name not in ("lost", "torn", "value")]


_IMPORT_WITH_TORCH_ALONE = """
import sys
allowed = set(sys.argv[1].split(",")) | set(sys.stdlib_module_names) | {"revsnn_nodes"}

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is walled off", name=name)

sys.meta_path.insert(0, Wall())
import revsnn_nodes, torch
y = revsnn_nodes.CarrierLIF()(torch.ones(3, 2, 4, requires_grad=True))
y.sum().backward()
print(*revsnn_nodes.node_names())
"""


def _modules_of(distribution, seen):
    """Top-level modules of a distribution and, recursively, of what it requires without extras."""
    if distribution in seen:
        return
    seen.add(distribution)
    for requirement in metadata.requires(distribution) or []:
        name = requirement.split(";")[0].split("[")[0].strip("() ")
        name = name.split("<")[0].split(">")[0].split("=")[0].split("!")[0].split("~")[0].strip()
        if "extra ==" not in requirement:
            try:
                _modules_of(name, seen)
            except metadata.PackageNotFoundError:
                continue


def test_import_needs_torch_alone():
    """In a process where nothing but the standard library, torch and its requirements can be imported, nodes train."""
    needed = set()
    _modules_of("torch", needed)
    needed = {name.lower().replace("_", "-") for name in needed}
    allowed = [
        module
        for module, owners in metadata.packages_distributions().items()
        if needed & {owner.lower().replace("_", "-") for owner in owners}
    ]
    assert "torch" in allowed
    assert not {"pytest", "pandas", "spikingjelly", "numba"} & set(allowed)
    package_root = str(Path(revsnn_nodes.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _IMPORT_WITH_TORCH_ALONE, ",".join(allowed)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": package_root},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[:7] == node_names()[:7]
