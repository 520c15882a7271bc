"""How the product is laid out: imports, sizes, and what its texts cite. Read from the sources, nothing is run.

"Product" is `revsnn_bench` and `revsnn_nodes`; a "room" is a module or a package of them.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"revsnn_nodes": ROOT / "nodes" / "revsnn_nodes", "revsnn_bench": ROOT / "revsnn_bench"}

ORDER = (
    "revsnn_nodes.parameters",
    "revsnn_nodes.surrogate",
    "revsnn_nodes.equations",
    "revsnn_nodes.kernels.layout",
    "revsnn_nodes.kernels.support",
    "revsnn_nodes.kernels.cpu",
    "revsnn_nodes.kernels.triton",
    "revsnn_nodes.kernels.ops",
    "revsnn_nodes.kernels.autograd",
    "revsnn_nodes.kernels",
    "revsnn_nodes.remat",
    "revsnn_nodes.checkpoints",
    "revsnn_nodes.base",
    "revsnn_nodes.lif",
    "revsnn_nodes.coupled",
    "revsnn_nodes.carrier",
    "revsnn_nodes.norm_carrier",
    "revsnn_nodes.registry",
    "revsnn_nodes.swap",
    "revsnn_nodes.spikingjelly",
    "revsnn_nodes.snntorch",
    "revsnn_nodes.plan",
    "revsnn_nodes",
    "revsnn_bench.exit_codes",
    "revsnn_bench.case",
    "revsnn_bench.records",
    "revsnn_bench.metrics",
    "revsnn_bench.system",
    "revsnn_bench.runs",
    "revsnn_bench.meters",
    "revsnn_bench.models",
    "revsnn_bench.measuring",
    "revsnn_bench.run_options",
    "revsnn_bench.runner",
    "revsnn_bench.report",
    "revsnn_bench.plan",
    "revsnn_bench.gate",
    "revsnn_bench.claims",
    "revsnn_bench.session",
    "revsnn_bench.kernel_speed",
    "revsnn_bench.tuning",
    "revsnn_bench.plugin",
    "revsnn_bench.cli",
    "revsnn_bench.__main__",
    "revsnn_bench",
)
"""Rooms, lowest first: a module imports from its own room and from those before it. The last ones of each package are
the package itself, whose `__init__` gathers what users import."""

LATE: dict[tuple[str, str], str] = {}
"""Imports inside functions that run against the order, and why."""

OF_PEERS = {"revsnn_nodes.spikingjelly": "spikingjelly", "revsnn_nodes.snntorch": "snntorch"}
"""Modules about another package, which they import: loaded only by those who ask for them."""

WITHOUT_TORCH = ("report", "gate", "claims")
"""Packages that work where torch is not installed, or before its import is paid for."""

MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 127, 600, 60

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions of more than `MOST_FUNCTION_LINES` lines, and why each is not cut."""

NOT_MODULES = frozenset({"revsnn_bench.nodes", "revsnn_bench.meters.graph"})
"""What looks like modules: the entry-point group of nodes, and the meter that CONTRIBUTING.md invents."""


class Module(NamedTuple):
    """A source file of the product."""

    name: str
    path: Path
    text: str
    tree: ast.Module


class Import(NamedTuple):
    """One module's import of another; `late` inside a function."""

    by: str
    of: str
    late: bool

    def __str__(self) -> str:
        return f"{self.by} -> {self.of}"


@cache
def modules() -> dict[str, Module]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            found[name] = Module(name, path, text, ast.parse(text))
    return found


def walk(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it is inside a function."""
    for child in ast.iter_child_nodes(node):
        yield child, late
        yield from walk(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imported(module: Module) -> Iterator[tuple[str, bool]]:
    """Dotted names that a module imports, those of other packages too."""
    package = module.name.split(".") if module.path.stem == "__init__" else module.name.split(".")[:-1]
    for node, late in walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield (inner if inner in modules() else source), late


@cache
def imports() -> frozenset[Import]:
    return frozenset(
        Import(module.name, name, late)
        for module in modules().values()
        for name, late in imported(module)
        if name in modules() and name != module.name
    )


def hold_nothing(found: Iterable[object]) -> None:
    """Fails with every violation on a line of its own."""
    lines = sorted(map(str, found))
    assert not lines, "\n" + "\n".join(lines)


def allowed(each: Import) -> bool:
    return each.late and (each.by, each.of) in LATE


def rank(module: str) -> int:
    """Place of a module's room in `ORDER`; the longest name that fits."""
    fitting = [room for room in ORDER if module == room or module.startswith(f"{room}.")]
    return ORDER.index(max(fitting, key=len))


def test_every_module_is_in_a_room():
    """No module is left to the packages' own place at the end of the order, and no room is empty."""
    homeless = [name for name in modules() if ORDER[rank(name)] in PACKAGES and name not in PACKAGES]
    hold_nothing(homeless)
    hold_nothing({*ORDER} - {ORDER[rank(name)] for name in modules()})


def test_no_import_runs_upward():
    """Not under TYPE_CHECKING nor inside functions either, unless `LATE` says why."""
    upward = {str(each) for each in imports() if rank(each.by) < rank(each.of) and not allowed(each)}
    hold_nothing(upward)


def test_no_import_circles():
    """No module reaches itself over any imports but those of `LATE`."""
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for each in imports():
        if not allowed(each):
            edges[each.by].add(each.of)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [*edges[start]]
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead += edges[name]
        return seen

    reach = {name: reached(name) for name in modules()}
    circles = {
        " <-> ".join(sorted(other for other in reach if other in reach[name] and name in reach[other]))
        for name in reach
        if name in reach[name]
    }
    hold_nothing(circles)


def test_late_imports_are_still_there():
    """The list of exceptions holds nothing that is gone."""
    assert {(each.by, each.of) for each in imports() if allowed(each)} == set(LATE)


def test_nodes_import_torch_alone():
    """`revsnn_nodes` takes no third party but torch, at module level, outside of the kernels for each device."""
    devices = ("revsnn_nodes.kernels.cpu", "revsnn_nodes.kernels.triton")
    taken = {
        (module.name, name.partition(".")[0])
        for module in modules().values()
        if module.name.startswith("revsnn_nodes") and not module.name.startswith(devices)
        for name, late in imported(module)
        if not late
    }
    known = {"torch", "revsnn_nodes", *sys.stdlib_module_names}
    foreign = {f"{name}: {package}" for name, package in taken if package not in {*known, OF_PEERS.get(name)}}
    hold_nothing(foreign)


def test_nodes_never_import_the_bench():
    """`revsnn_nodes` is a package of its own, late imports included."""
    hold_nothing(str(each) for each in imports() if each.by.startswith("revsnn_nodes") and "bench" in each.of)


def loaded(module: str) -> set[str]:
    """Modules in a new process after the import of one."""
    code = f"import sys, {module}; print(*sys.modules)"
    paths = [str(folder.parent) for folder in PACKAGES.values()]
    run = [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"]
    return set(subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_reading_a_run_loads_no_torch(package):
    """Every module of the package, imported in a new process: no torch, and nothing that measures."""
    names = [name for name in modules() if name.startswith(f"revsnn_bench.{package}")]
    there = loaded(", ".join(names))
    above = {f"revsnn_bench.{room}" for room in ("meters", "models", "runner")}
    hold_nothing(there & {"torch", "numba", "triton", *above})


def test_commands_start_without_what_only_some_need():
    """The command line, every subcommand of it: neither torch nor pandas, which take longer to load than the rest."""
    hold_nothing(loaded("revsnn_bench.cli") & {"torch", "pandas", "matplotlib", "numba", "optuna"})


def test_nodes_load_no_compiler():
    """Numba and triton are loaded when a fused node runs, SpikingJelly when a network is converted."""
    hold_nothing(loaded("revsnn_nodes") & {"numba", "triton", "spikingjelly", "snntorch", "revsnn_bench"})


def test_number_of_files():
    """A concept is a file; fragments of one belong together."""
    assert len(modules()) <= MOST_FILES


def test_files_are_short():
    """A file that is longer holds two concepts."""
    long = {str(each.path.relative_to(ROOT)): each.text.count("\n") for each in modules().values()}
    hold_nothing(f"{path}: {lines}" for path, lines in long.items() if lines > MOST_LINES)


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first, text = function.body[0], ast.get_docstring(function)
    assert function.end_lineno is not None
    docstring = first.end_lineno - first.lineno + 1 if text is not None and first.end_lineno is not None else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_functions_are_short():
    """Docstrings do not count; an exception says why it is one, and is one."""
    long = {}
    for module in modules().values():
        for node, _ in walk(module.tree):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and (lines := lines_of(node)) > MOST_FUNCTION_LINES:
                long[f"{module.name}.{node.name}"] = lines
    hold_nothing(f"{name}: {lines}" for name, lines in long.items() if name not in LONG_FUNCTIONS)
    assert set(LONG_FUNCTIONS) <= set(long)


DOTTED = re.compile(r"(?<![\w./-])revsnn_(?:nodes|bench)(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w/.<>{}$-])(?:\.\./)*[\w.-]*\w(?:/[\w.*-]+)*\.(?:py|md|toml|ini|cff)(?![\w/*-])")
LINK = re.compile(r"https?://\S+")

USERS_FILES = frozenset(
    {"conftest.py", "in_python.py", "loop.py", "model.py", "my_net.py", "net.py", "task.py", "train.py"}
)
"""Files that examples give to a user's own project."""


def markdown() -> list[Path]:
    """The documents; reports are results, and the changelog tells of names that are gone."""
    top = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    return sorted([*top, *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), ROOT / "nodes/README.md"])


def prose_of(module: Module) -> str:
    """Docstrings and comments."""
    strings = [
        node.value.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return "\n".join([*strings, *(each.string for each in tokens if each.type == tokenize.COMMENT)])


@cache
def texts() -> tuple[tuple[Path, str], ...]:
    """Every text that may cite, with its file; no web addresses."""
    sources = [(module.path, prose_of(module)) for module in modules().values()]
    documents = [(path, path.read_text(encoding="utf-8")) for path in markdown()]
    return tuple((path, LINK.sub("", text)) for path, text in (*sources, *documents))


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that statements bind: those of functions, classes, assignments and imports."""
    found: dict[str, ast.stmt] = {}
    for statement in body:
        for node in ast.walk(statement) if not isinstance(statement, ast.FunctionDef | ast.ClassDef) else [statement]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                found[node.id if isinstance(node, ast.Name) else node.attr] = statement
            elif isinstance(node, ast.alias):
                found[node.asname or node.name] = statement
    return found


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; members of classes with bases may be inherited."""
    parts = name.split(".")
    depth = max(n for n in range(1, len(parts) + 1) if n == 1 or ".".join(parts[:n]) in modules())
    body = modules()[".".join(parts[:depth])].tree.body
    for part in parts[depth:]:
        found = members(body).get(part)
        if found is None:
            return False
        if not isinstance(found, ast.ClassDef) or found.bases:
            return True
        body = found.body + [inner for each in found.body if isinstance(each, ast.FunctionDef) for inner in each.body]
    return True


def test_cited_names_exist():
    """Every `revsnn_nodes.x.y` and `revsnn_bench.x.y` in a docstring, a comment or a document."""
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in texts()
        for name in DOTTED.findall(text)
        if name not in NOT_MODULES and not resolves(name)
    }
    hold_nothing(missing)


def test_cited_files_exist():
    """Every path like `nodes/README.md`: from the root, from a package, or from the folder of the file that cites it.

    A name without a folder may be that of any file of the repository.
    """
    known = {path.name for folder in ("revsnn_bench", "nodes", "suites", "tests", "docs", "examples", "reports")
             for path in (ROOT / folder).rglob("*.*")} | {path.name for path in ROOT.iterdir()}  # fmt: skip

    def exists(cited: str, path: Path) -> bool:
        if "/" not in cited:
            return cited in known | USERS_FILES
        return any([*start.glob(cited)] if "*" in cited else (start / cited).exists() for start in (
            ROOT, *PACKAGES.values(), path.parent, ROOT / "nodes"
        ))  # fmt: skip

    missing = {
        f"{path.relative_to(ROOT)}: {cited}"
        for path, text in texts()
        for cited in FILE.findall(text)
        if not exists(cited, path)
    }
    hold_nothing(missing)
