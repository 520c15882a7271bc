"""The command `revsnn-bench`: one small file per subcommand."""

import typer

from revsnn_bench.cli import (
    claims,
    gate,
    largest,
    run,
    train,
)
from revsnn_bench.cli import (
    machine as doctor,
)
from revsnn_bench.cli import (
    machine as env,
)
from revsnn_bench.cli import (
    machine as nodes,
)
from revsnn_bench.cli import (
    reports as compare,
)
from revsnn_bench.cli import (
    reports as report,
)

app = typer.Typer(
    name="revsnn-bench",
    help="Which way of training a spiking network fits your memory, what does it cost, and is its gradient right?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("gate")(gate.gate_command)
app.command("train")(train.train)
app.command("largest")(largest.largest)
app.command("claims")(claims.claims)
app.command("nodes")(nodes.nodes)
app.command("env")(env.env)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the console script."""
    app()
