"""Poisson spikes from the case to the network: what is drawn anew, what stays the same, and where it is refused."""

import json

import pytest
import torch
from typer.testing import CliRunner

from revsnn_bench import Case
from revsnn_bench.case import Sweep
from revsnn_bench.cli import app
from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.models.data import digits
from revsnn_bench.models.training import Recipe, Trainer
from revsnn_bench.models.workloads import build, network
from revsnn_bench.plan.predict import predict
from revsnn_bench.records import SkipCase

CASE = Case(
    node="lif", workload="digits-net", timesteps=3, batch=4, shape=(1, 8, 8), encoding="poisson",
    node_options={"backend": "torch"},
)  # fmt: skip
FEW = 96


@pytest.fixture
def make_trainer():
    """Makes a trainer on the first digits alone."""

    def make(case=CASE, epochs=2):
        data = Trainer(case, Recipe(epochs)).data
        few = data._replace(train_images=data.train_images[:FEW], train_labels=data.train_labels[:FEW])
        return Trainer(case, Recipe(epochs, batch=32), few)

    return make


def shown(trainer):
    """Every input that the network of a trainer is shown, from now on."""
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    return seen


def test_measured_step_reads_spikes():
    """The source of a Poisson case is binary and differs between steps; that of a direct case is the image."""
    spikes = build(CASE).source.detach()
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(spikes[0], spikes[1])
    image = build(CASE.model_copy(update={"encoding": "direct"})).source.detach()
    assert torch.equal(image[0], image[2])
    assert bool((spikes[:, image[0] == 0] == 0).all())


def test_spikes_stay_spikes_while_they_are_measured():
    """Each step that is weighed has another input; one that were no longer binary would not be kept as bits."""
    case = CASE.model_copy(update={"node": "lif+bitpack"})
    assert measure_memory(build(case)).retained_bytes == predict(case).retained_bytes


def test_training_spikes_are_new_and_test_spikes_are_not(make_trainer):
    """Two epochs show other spikes to train on each time, and the same ones to test on."""
    trainer = make_trainer()
    seen = shown(trainer)
    trainer.run_epoch()
    trainer.run_epoch()
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    steps = FEW // 32
    densities = [[x.mean() for x in epoch[:steps]] for epoch in (first, second)]
    assert densities[0] != densities[1]
    assert all(torch.equal(a, b) for a, b in zip(first[steps:], second[steps:], strict=True))
    assert not torch.equal(first[steps], first[steps + 1])


def test_resumed_training_draws_the_same_spikes(make_trainer):
    """One epoch, a state, and another epoch in a new trainer, give the loss of two epochs in one go."""
    whole, first, second = make_trainer(), make_trainer(), make_trainer()
    whole.run_epoch()
    whole.run_epoch()
    first.run_epoch()
    second.load_state(first.state())
    second.run_epoch()
    assert second.loss_by_epoch == whole.loss_by_epoch
    assert second.accuracy_by_epoch == whole.accuracy_by_epoch


@pytest.mark.parametrize(("workload", "shape", "timesteps"), [("layer", (8,), 4), ("pixels", (8,), 64)])
def test_spikes_are_refused_where_nothing_is_encoded(workload, shape, timesteps):
    """Noise has no brightness, and a pixel sequence shows each pixel once: to measure or to train."""
    case = CASE.model_copy(update={"workload": workload, "shape": shape, "timesteps": timesteps})
    with pytest.raises(ValueError, match="`encoding` must be 'direct' in the workload"):
        build(case)
    if workload == "pixels":
        with pytest.raises(ValueError, match="`encoding` must be 'direct' in the workload"):
            network(case, classes=10)


def test_pixels_are_shown_one_by_one_where_every_step_has_a_loss():
    """`mlp` reads a pixel per step, row by row, or the latest few; a network of whole images, or a size, is refused."""
    case = CASE.model_copy(update={"workload": "mlp", "shape": (1,), "timesteps": 64, "encoding": "pixels"})
    step = build(case)
    pixels = digits().train_images[: case.batch].flatten(1)
    assert torch.equal(step.source, pixels.t().unsqueeze(-1))
    assert step.run(step.make_input()).shape == ()
    (last, first) = (build(case.model_copy(update={"shape": (3,)})).source[t] for t in (63, 0))
    assert torch.equal(last, pixels[:, 61:])
    assert torch.equal(first, torch.stack([torch.zeros(4), torch.zeros(4), pixels[:, 0]], 1))
    with pytest.raises(ValueError, match="`shape` must be one size with the encoding 'pixels'"):
        build(case.model_copy(update={"shape": (1, 8, 8)}))
    with pytest.raises(SkipCase, match="`timesteps` must be a square of at least 64; got 65"):
        build(case.model_copy(update={"timesteps": 65}))
    with pytest.raises(ValueError, match="`encoding` must be one of 'direct', 'poisson' in the workload 'digits-net'"):
        build(case.model_copy(update={"workload": "digits-net", "shape": (1, 8, 8)}))


def test_encoding_is_in_the_name_and_an_axis():
    """Cases that differ in their encoding alone have different ids; direct ones keep the id that they had."""
    cases = Sweep(quick={"encoding": ("direct", "poisson")}, workload="digits-net").cases("quick", {}, ["lif"])
    assert [case.encoding for case in cases] == ["direct", "poisson"]
    assert cases[1].id == f"{cases[0].id}/poisson"


def test_train_command_encodes(tmp_path):
    """`--encoding poisson` trains on spikes and says so in the record; another word ends with usage."""
    arguments = ["train", "--network=digits-net", "--node=lif", "--timesteps=2", "--epochs=1", "--batch=256"]
    arguments += [f"--results={tmp_path}", "--run-id=spikes"]
    done = CliRunner().invoke(app, [*arguments, "--encoding=poisson"])
    assert done.exit_code == 0, done.output
    case = json.loads((tmp_path / "spikes.json").read_text())["records"][0]["case"]
    assert case["encoding"] == "poisson"
    refused = CliRunner().invoke(app, [*arguments, "--encoding=latency"])
    assert refused.exit_code == 2
    assert "must be one of direct, poisson, pixels" in refused.output
