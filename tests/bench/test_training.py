"""Training: what a checkpoint keeps, what the record tells, and what the command says of wrong options."""

import json
import resource
import warnings

import pytest
import torch
from typer.testing import CliRunner

from revsnn_bench import Case, Settings, measure
from revsnn_bench.cli import app
from revsnn_bench.models.training import Recipe, Trainer
from revsnn_bench.models.workloads import build, network

CASE = Case(node="lif-carrier", workload="digits-net", timesteps=2, shape=(1, 8, 8), node_options={"backend": "torch"})
FEW = 128


@pytest.fixture
def make_trainer():
    """Makes a trainer on the first digits alone."""

    def make(case=CASE, epochs=3):
        trainer = Trainer(case, Recipe(epochs, batch=32))
        data = trainer.data
        few = data._replace(train_images=data.train_images[:FEW], train_labels=data.train_labels[:FEW])
        return Trainer(case, Recipe(epochs, batch=32), few)

    return make


def finished(trainer):
    while trainer.epoch < trainer.recipe.epochs:
        trainer.run_epoch()
    return trainer


def test_resumed_training_continues_to_the_bit(make_trainer, tmp_path):
    """Three epochs in one go, and one epoch, a file, and two more in a new trainer, give the same weights and curve."""
    whole = finished(make_trainer())
    first = make_trainer()
    first.run_epoch()
    torch.save(first.state(), tmp_path / "c.pt")
    second = make_trainer()
    second.load_state(torch.load(tmp_path / "c.pt", weights_only=True))
    finished(second)
    assert second.loss_by_epoch == whole.loss_by_epoch
    assert second.accuracy_by_epoch == whole.accuracy_by_epoch
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


def test_checkpoint_of_another_training_is_refused(make_trainer):
    """A checkpoint of another seed, budget or data is refused, with the difference in the message."""
    trainer = make_trainer()
    state = trainer.state()
    with pytest.raises(ValueError, match=r"must be of the same training; got one of epochs 3, not 4\. Another"):
        make_trainer(epochs=4).load_state(state)
    with pytest.raises(ValueError, match=r"must be of the same training; got one of seed 0, not 1\. Another"):
        make_trainer(CASE.model_copy(update={"seed": 1})).load_state(state)
    other = trainer.data._replace(test_labels=trainer.data.test_labels.flip(0))
    with pytest.raises(ValueError, match=r"got one of checksum of its data [0-9a-f]{8}, not [0-9a-f]{8}\. Another"):
        Trainer(CASE, trainer.recipe, other).load_state(state)


def test_record_holds_curve_and_stripped_accuracy(make_trainer):
    """One loss and one accuracy per epoch; the last is the accuracy; stripped where nodes carry, else None."""
    record = finished(make_trainer()).record()
    assert len(record.loss_by_epoch) == len(record.accuracy_by_epoch) == record.epochs == 3
    assert record.accuracy == record.accuracy_by_epoch[-1]
    assert record.stripped_accuracy is not None
    assert record.loss_by_epoch[-1] < record.loss_by_epoch[0]
    plain = finished(make_trainer(CASE.model_copy(update={"node": "lif"}), epochs=1)).record()
    assert plain.stripped_accuracy is None


def test_stripped_network_emits_spikes(make_trainer):
    """After the record is made every node is back in the mode in which eval() gives binary spikes."""
    trainer = finished(make_trainer(epochs=1))
    trainer.record()
    seen = []
    for module in trainer.model.modules():
        if hasattr(module, "carrier"):
            module.register_forward_hook(lambda *call: seen.append(call[2]))
    trainer.accuracy()
    assert seen
    assert all(bool(((y == 0) | (y == 1)).all()) for y in seen)


def test_network_has_the_parameters_that_the_workload_measures():
    """What is trained is what is measured: the same seed gives the same parameters."""
    measured, trained = build(CASE).model, network(CASE, classes=10)
    for (name, a), (other, b) in zip(measured.named_parameters(), trained.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_case_with_epochs_is_trained():
    """A case that asks for epochs is trained for so many, whatever the settings say."""
    record = measure(CASE.model_copy(update={"epochs": 1}), Settings(passes=("memory",)))
    assert record.accuracy is not None
    assert record.accuracy.epochs == 1
    assert record.case.id.endswith("/epochs1")


def test_one_swapped_layer_differs_from_the_standard_network_there_alone():
    """`vgg11-one` holds the case's node in its first layer, and the standard LIF with the same tau in all others."""
    case = Case(
        node="lif-carrier", workload="vgg11-one@0.125", timesteps=2, batch=2, shape=(1, 8, 8), node_options={"tau": 3.0}
    )
    nodes = [module for module in build(case).model.modules() if hasattr(module, "neuron")]
    kinds = [type(node).__name__ for node in nodes]
    assert kinds == ["CarrierLIF", *["StandardLIF"] * 7]
    assert {node.tau for node in nodes} == {3.0}


def test_train_command_goes_on_and_saves_a_run(tmp_path):
    """The command prints a line per epoch, saves a run, and with a complete checkpoint has no epoch left to run."""
    arguments = ["train", "--network=digits-net", "--node=lif", "--timesteps=1", "--epochs=1", "--batch=256"]
    arguments += [f"--checkpoint={tmp_path / 'c.pt'}", f"--results={tmp_path}", "--option=tau=3.0"]
    first = CliRunner().invoke(app, [*arguments, "--run-id=a"])
    assert first.exit_code == 0, first.output
    assert "epoch   1" in first.output
    second = CliRunner().invoke(app, [*arguments, "--run-id=b"])
    assert "epoch   1" not in second.output
    a, b = (json.loads((tmp_path / f"{name}.json").read_text())["records"][0] for name in "ab")
    assert a["accuracy"] == b["accuracy"]
    assert a["case"]["node_options"] == [["tau", 3.0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=cifar10", "--data-dir=nowhere"], "cifar-10-binary.tar.gz"),
        (["--network=layer"], "network that classifies"),
        (["--node=liff"], "lif"),
        (["--option=tau"], "NAME=VALUE"),
        (["--option=foo=1"], "--option: the node 'lif-carrier' refuses its arguments: "),
        (["--option=foo=1"], "unexpected keyword argument 'foo'"),
        (["--network=pixels", "--shape=16", "--timesteps=65"], "must be a square"),
    ],
)
def test_wrong_options_end_with_usage_and_say_why(arguments, message):
    """Exit code 2, and a message that names what was wrong."""
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_an_interrupted_training_says_what_is_kept(tmp_path, monkeypatch):
    """Without a checkpoint nothing is, and the option is named; a warning is one line without the place in the code."""

    def interrupted(trainer, on_batch):
        warnings.warn("the input is clamped", stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    arguments = ["train", "--network=digits-net", "--timesteps=1", f"--results={tmp_path}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 130
    assert "Error: interrupted; nothing was saved. With --checkpoint FILE the same command goes on" in done.output
    assert "Warning: the input is clamped\n" in done.output
    assert __file__ not in done.output
    done = CliRunner().invoke(app, [*arguments, f"--checkpoint={tmp_path / 'c.pt'}"])
    assert "Error: interrupted; the same command goes on after epoch 0." in done.output


def test_a_checkpoint_that_does_not_fit_is_named_with_what_is_kept(tmp_path):
    """No half of one is left, and files of one stem have each a part of their own."""
    kept = tmp_path / "vgg11@0.25"
    arguments = ["train", "--network=digits-net", "--node=lif", "--timesteps=1", "--batch=512", f"--results={tmp_path}"]
    arguments += ["--epochs=2", f"--checkpoint={kept}"]
    (tmp_path / "vgg11@0.tmp").write_text("of vgg11@0.5")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        done = CliRunner().invoke(app, arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(done.exception, OSError), done.output
    assert done.exception.filename == str(kept)
    assert done.exception.__notes__ == ["The same command goes on from the start."]
    assert [path.name for path in tmp_path.iterdir()] == ["vgg11@0.tmp"]
