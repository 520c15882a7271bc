"""`revsnn-bench env`, `doctor` and `nodes`: the environment, checks of meters and machine, and what can be compared."""

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console

from revsnn_bench.cli.options import (
    REPORTS,
    RESULTS,
    Reports,
    Results,
    Resume,
    RunName,
    busy,
    failure,
    refusing,
    require_name,
)
from revsnn_bench.cli.run import run_suites
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.measuring import measure
from revsnn_bench.report.terminal import Grid
from revsnn_bench.runs import require_writable
from revsnn_bench.system.environment import Finding, machine


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the environment that a run records, as its workers see it."""
    from revsnn_bench.runner import Runner

    with busy("Starting a worker ..."), Runner(measure, timeout_s=60) as runner:
        environment = runner.environment()
    if as_json:
        typer.echo(environment.model_dump_json(indent=1))
        return
    for field, value in environment.model_dump().items():
        shown = ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{field:14} {'none' if shown in (None, '') else shown}")


GPU_SIZES = ((4, 1 << 24), (16, 1 << 22), (64, 1 << 20))
"""Steps and neurons at which kernels are timed on a GPU: 256 MiB of float32, several times what its caches hold."""

REHEARSAL_SIZES = ((4, 1 << 12),)


def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Everything for a first hour on a GPU: see docs/gpu.md. About ten minutes.")
    ] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="With --gpu: the same, small and on the CPU, to see that it runs.")
    ] = False,
    run_id: RunName = "",
    resume: Resume = "",
    results: Results = RESULTS,
    reports: Reports = REPORTS,
) -> None:
    """Check the meters against closed forms, and this machine for what disturbs a measurement.

    With --gpu also: the meters on the GPU, the bandwidth of every fused kernel and steps of layers beside
    SpikingJelly's (written to <results>/<name>-kernels.json), and the suite `gpu`, whose run is saved and reported.
    Exit code 5 where a meter is wrong or a case failed; advice on the machine does not change the exit code.
    """
    with busy("Loading torch ..."):
        import torch

    if gpu and not rehearse and not torch.cuda.is_available():
        raise failure("--gpu needs a CUDA device, and torch finds none. Try `doctor --gpu --rehearse`.", ExitCode.USAGE)
    device, name = "cuda" if gpu and not rehearse else "cpu", run_id or "gpu"
    if gpu:  # what could not be saved is not measured
        if not rehearse:
            require_name("" if resume else name, results, resume)
        require_writable(results, *(() if rehearse else (reports,)))
    console = Console()
    _check(console, device)
    if not gpu:
        return
    from revsnn_bench.kernel_speed import SPEED_HEADINGS, measure_speeds

    path = results / f"{name}-kernels.json"
    rows = measure_speeds(device, REHEARSAL_SIZES if rehearse else GPU_SIZES, path)
    console.print(Grid("Kernels alone, and steps of a layer", SPEED_HEADINGS, [False] * 2 + [True] * 6, rows))
    typer.echo(path)
    if rehearse:  # every case once, small, with nothing saved
        run_suites("gpu", ["--sweep-device=cpu"], {})
    saved = {"run_id": "" if resume else name, "resume": resume, "results": results, "reports": reports}
    run_suites("gpu", ["--benchmark"], saved)


def _check(console: Console, device: str) -> None:
    """Shows how the meters stand to closed forms, and what disturbs here; ends the command where a meter is wrong."""
    with busy("Checking the meters ..."):
        tests = {"Meters against closed forms": _self_test("cpu")}
        if device == "cuda":
            tests["Meters against closed forms, on the GPU"] = _self_test(device)
    for title, findings in (*tests.items(), ("This machine", machine())):
        table = Grid(title, ["", "what", "found", "advice"])
        for finding in findings:
            mark = "ok" if finding.good else "LOOK"
            table.add_row(mark, finding.name, finding.found, "" if finding.good else finding.advice)
        console.print(table)
    if not all(finding.good for findings in tests.values() for finding in findings):
        console.print("A meter is wrong: please report this, with the output of `revsnn-bench env`.")
        raise typer.Exit(ExitCode.CASE_FAILED)


def _self_test(device: str) -> list[Finding]:
    """Bytes and operations of a small workload against their closed form; they must agree to the last digit."""
    from revsnn_bench.meters.selftest import run_selftest

    tests = run_selftest(device)
    return [Finding(name, wanted == found, f"{found}", f"must be {wanted}") for name, wanted, found in tests]


def nodes(
    name: Annotated[str | None, typer.Argument(help="Show everything about one node or node+strategy.")] = None,
) -> None:
    """List what `run --node` takes, or describe one: what it computes, keeps and guarantees."""
    from revsnn_bench.models import own
    from revsnn_bench.models.methods import METHODS
    from revsnn_bench.models.peers import PEERS
    from revsnn_bench.models.strategies import strategy_names

    if name is None:
        table = Grid("Nodes", ["name", "class", "what it is"])
        known = {each: _makers(each)[-1] for each in (*strategy_names(), *PEERS)}
        for each, made in (known | {f"lif+{kind}": method.of for kind, method in METHODS.items()}).items():
            summary = (inspect.getdoc(made) or "").partition("\n")[0]
            table.add_row(each, getattr(made, "__name__", repr(made)), summary)
        Console().print(table)
        return
    if name in own.METHODS and own.is_untouched(name):
        typer.echo(f"{name}: {own.__doc__}")
        return
    with refusing(ValueError):
        makers = _makers(name)
    for made in makers:
        typer.echo(f"{name}: {getattr(made, '__module__', '')}.{getattr(made, '__qualname__', made)}")
        typer.echo(f"\n{inspect.getdoc(made) or 'No description.'}\n")
        if made is makers[0] or made.__module__.startswith("revsnn_nodes"):  # else the harness calls it
            typer.echo("\n".join(["Arguments:", *map(_argument, inspect.signature(made).parameters.values()), ""]))


def _argument(parameter: inspect.Parameter) -> str:
    """An argument with its default, and what else it may be where that is a choice."""
    name = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
    text = f"  {name}" if parameter.default is parameter.empty else f"  {name} = {parameter.default!r}"
    choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
    return f"{text}, or {', '.join(repr(each) for each in choices if each != parameter.default)}" if choices else text


def _makers(name: str) -> list[Any]:
    """Class or function behind a name that `run` accepts: of the node, and then of the strategy."""
    from revsnn_nodes import NormCarrierLIF

    from revsnn_bench.models.methods import method_of
    from revsnn_bench.models.peers import factory_of
    from revsnn_bench.models.reversible import RevChain
    from revsnn_bench.models.strategies import BLOCKS, CONTEXTS, NORM_CARRIER, REV_BLOCK, strategy

    strategy(name)
    if name == NORM_CARRIER:
        return [NormCarrierLIF]
    made: list[Any] = [factory_of(name)]
    kind = name.partition("+")[2]
    if kind:
        method = method_of(kind)
        made.append(method.of if method else {REV_BLOCK: RevChain, **BLOCKS, **CONTEXTS}[kind])
    return made
