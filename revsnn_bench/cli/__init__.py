"""The command `revsnn-bench`: one small file per subcommand, or per few that belong together."""

import typer

from revsnn_bench.cli import claims, gate, largest, machine, plan, reports, run, train

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
app.command("report")(reports.report)
app.command("compare")(reports.compare)
app.command("gate")(gate.gate_command)
app.command("train")(train.train)
app.command("largest")(largest.largest)
app.command("plan")(plan.plan)
app.command("predict")(plan.predict)
app.command("claims")(claims.claims)
app.command("nodes")(machine.nodes)
app.command("env")(machine.env)
app.command("doctor")(machine.doctor)


def main() -> None:
    """Entry point of the console script."""
    app()
