"""Every refusal of the nodes: the rule, the value, the reason and the fix, before anything is computed."""

import inspect
import re

import numpy as np
import pytest
import torch
from nodes_cases import ALL, COUPLED, make
from revsnn_nodes import (
    CarrierLIF,
    NormCarrierLIF,
    ReversibleLIF,
    StandardLIF,
    make_node,
    node_factory,
    predicted_gradient_error,
    register_node,
    surrogate,
)

NAN = float("nan")
ANY_NODE = [
    ({"tau": 1.0}, r"`tau` must be > 1 step; got 1\.0\. The leak 1/tau would overshoot rest\. Pass tau in time steps"),
    ({"tau": 0.5}, r"`tau` must be > 1 step; got 0\.5"),
    ({"tau": NAN}, r"`tau` must be a finite number; got nan"),
    ({"tau": float("inf")}, r"`tau` must be a finite number; got inf"),
    ({"tau": "2"}, r"`tau` must be a finite number; got '2'"),
    ({"v_threshold": NAN}, r"`v_threshold` must be a finite number; got nan"),
    ({"v_reset": NAN}, r"`v_reset` must be a finite number; got nan"),
    (
        {"detach_reset": "no"},
        r"`detach_reset` must be True or False; got 'no'\. It says whether the reset has a gradient",
    ),
    ({"decay_input": "no"}, r"`decay_input` must be True or False; got 'no'"),
    ({"store_v_seq": "no"}, r"`store_v_seq` must be True or False; got 'no'"),
    ({"step_mode": "multi"}, r'`step_mode` must be "s" or "m"; got \'multi\'.*Pass "m" for \[T, N, \*\]'),
]
COUPLING = [
    ({"groups": 1}, r"`groups` must be an integer >= 2; got 1\..*Pass groups=2"),
    ({"groups": 2.0}, r"`groups` must be an integer >= 2; got 2\.0"),
    (
        {"group_dim": 0},
        r"`group_dim` must be an integer, not 0; got 0\..*samples must stay independent.*Pass 1 for channels",
    ),
    ({"group_dim": "1"}, r"`group_dim` must be an integer, not 0; got '1'"),
    ({"alpha": "0.5"}, r"`alpha` must lie in \(0, 1\); got '0\.5'"),
    ({"alpha": 0.0}, r"`alpha` must lie in \(0, 1\); got 0\.0"),
    ({"alpha": 1.0}, r"`alpha` must lie in \(0, 1\); got 1\.0\. The inverse divides by 1 - alpha g"),
    ({"alpha": NAN}, r"`alpha` must lie in \(0, 1\); got nan"),
    ({"beta": 0.0}, r"`beta` must not be 0; got 0\.0\..*the inverse divides by it"),
    ({"beta": float("inf")}, r"`beta` must be a finite number; got inf"),
    ({"reset_gate": "v"}, r'`reset_gate` must be "output" or "spike"; got \'v\''),
]
OWN = [
    (
        "lif-checkpoint",
        {"checkpoint_every": 0},
        r"`checkpoint_every` must be a whole number of steps, at least 1; got 0.*ceil",
    ),
    (
        "lif-checkpoint",
        {"checkpoint_every": 2.5},
        r"`checkpoint_every` must be a whole number of steps, at least 1; got 2\.5.*ceil",
    ),
    (
        "revlif-anchored",
        {"anchor_every": 0},
        r"`anchor_every` must be a whole number of steps, at least 1; got 0.*Leave it out",
    ),
    ("revlif-anchored", {"anchor_every": 2.5}, r"`anchor_every` must be a whole number of steps, at least 1; got 2\.5"),
    ("revlif", {"drift_tolerance": "x"}, r"`drift_tolerance` must lie in \(0, 1\]; got 'x'"),
    ("revlif-anchored", {"reset_gate": "spike", "alpha": 1.1}, r"`alpha` must lie in \(0, 1\]; got 1\.1"),
    (
        "lif-carrier",
        {"epsilon": 0.1},
        r"`epsilon` must be a power of two in \(0, 1\); got 0\.1\..*1/16",
    ),
    ("lif-carrier", {"epsilon": 2.0}, r"`epsilon` must be a power of two in \(0, 1\); got 2\.0"),
    ("lif-carrier", {"epsilon": 0.0}, r"`epsilon` must be a power of two in \(0, 1\); got 0\.0"),
    ("lif-carrier", {"epsilon": "x"}, r"`epsilon` must be a power of two in \(0, 1\); got 'x'"),
    ("lif-carrier", {"carrier": "eval"}, r'`carrier` must be "train" or "always"; got \'eval\''),
]


@pytest.mark.parametrize(("options", "message"), ANY_NODE, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("name", ALL)
def test_neuron_parameters_are_checked(name, options, message):
    """Every node refuses what no LIF can be."""
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize(("options", "message"), COUPLING, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("name", COUPLED)
def test_coupling_parameters_are_checked(name, options, message):
    """Every coupled node refuses what cannot be coupled or inverted."""
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize(("name", "options", "message"), OWN, ids=lambda value: str(value)[:24])
def test_a_nodes_own_parameters_are_checked(name, options, message):
    """Segments, anchors and carriers have their rules too."""
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_checked(name):
    """Too few dimensions, no step, or integers: named with shape or dtype, and what to do."""
    node = make(name)
    with pytest.raises(ValueError, match=r"`x` must be \[T, N, \*\] with at least one step; got \(4,\).*step_mode"):
        node(torch.zeros(4))
    with pytest.raises(ValueError, match=r"with at least one step; got \(0, 2, 4\)"):
        node(torch.zeros(0, 2, 4))
    with pytest.raises(ValueError, match=r"`x` must be floating, .*; got torch.int64\..*\.float\(\)"):
        node(torch.zeros(3, 2, 4, dtype=torch.int64))
    single = make(name, step_mode="s")
    with pytest.raises(ValueError, match=r"`x` must be \[N, \*\] with at least one step; got \(\)"):
        single(torch.zeros(()))
    for given in (np.zeros((3, 2, 4)), [0.5], None):
        with pytest.raises(ValueError, match=f"`x` must be a tensor; got '{type(given).__name__}'.*torch.as_tensor"):
            node(given)
    with pytest.raises(ValueError, match=r"`x` must be floating, of 2 bytes or more; got torch.float8_e5m2"):
        node(torch.zeros(3, 2, 4, dtype=torch.float8_e5m2))
    for given, shown in (
        (torch.ones(3, 2, 4).to_sparse(), "torch.sparse_coo"),
        (torch.nested.nested_tensor([torch.ones(2, 4)] * 2, layout=torch.jagged), "'a nested tensor'"),
    ):
        with pytest.raises(ValueError, match=f"`x` must be dense; got {shown}.*to_dense"):
            node(given)
    assert node.v == single.v == 0.0


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_clamp_beyond_the_largest_number_is_said(backend):
    """With a threshold of 1e4 the carrier's clamp is none of float16; bfloat16 holds it."""
    node = CarrierLIF(v_threshold=1e4, step_mode="m", backend=backend)
    with pytest.raises(ValueError, match=r"holds the carrier's clamp, 126976; got torch\.float16\. .* is 65504"):
        node(torch.zeros(3, 2, 4, dtype=torch.float16))
    assert not node(torch.zeros(3, 2, 4, dtype=torch.bfloat16)).any()


def test_what_norms_and_surrogates_take_is_checked():
    """A layer with its norm needs channels and tensors; a surrogate's sharpness is a number."""
    for given in (0, -1, 2.5, "3"):
        with pytest.raises(ValueError, match=f"`num_features` must be a whole number, at least 1; got {given!r}"):
            NormCarrierLIF(given)
    node = NormCarrierLIF(3)
    with pytest.raises(ValueError, match="`z` must be a tensor; got 'NoneType'"):
        node(None)
    with pytest.raises(ValueError, match="`residual` must be a tensor; got 'list'"):
        node(torch.zeros(2, 3), [1.0])
    with pytest.raises(ValueError, match=r"`alpha` must be positive; got 'x'.*default 4\.0"):
        surrogate.Sigmoid("x")
    function = surrogate.Sigmoid()
    for given in (0, -1.0, float("nan"), float("inf"), torch.tensor(2.0)):
        with pytest.raises(ValueError, match=r"`alpha` must be positive; got .*not learned"):
            function.alpha = given
    assert function.alpha == 4.0


@pytest.mark.parametrize("name", ["", "a,b", "a+b", "a b", 3, None])
def test_names_that_no_case_can_ask_for_are_refused(name):
    """`--node` separates names by commas, and methods by a plus."""
    with pytest.raises(ValueError, match="`name` must be a word without comma and plus; got "):
        register_node(name, dict)
    with pytest.raises(ValueError, match="`factory` must be a class or a function; got 3"):
        register_node("y", 3)
    with pytest.raises(ValueError, match="`node` must be a registered name; got "):
        make_node(name)


def test_the_predicted_error_takes_parameters():
    """A node, or the parameters of another neuron: the message says where they are."""
    for given in (ReversibleLIF(), StandardLIF().neuron):
        with pytest.raises(ValueError, match=r"`neuron` must be the parameters of a coupled node.*Pass `node\.neuron`"):
            predicted_gradient_error(4, given, torch.float32)


def test_a_taken_name_is_refused():
    """Registering another factory under a known name; the same factory again is fine."""
    with pytest.raises(ValueError, match=r"`name` must be unused; got 'lif'.*Choose another name"):
        register_node("lif", dict)
    register_node("lif", type(make("lif")))


class OneMore(StandardLIF):
    """A node of one's own, with an argument beside those of its base."""

    def __init__(self, own, tau=2.0):
        super().__init__(tau)


@pytest.mark.parametrize("kind", [*map(node_factory, (*ALL, "if", "plif")), NormCarrierLIF, OneMore])
def test_an_unknown_argument_is_told_by_the_class_that_was_called(kind):
    """With all that it takes; not by a base that the caller has never heard of."""
    names = ", ".join(inspect.signature(kind).parameters)
    given = {name: 3 for name in ("num_features", "own") if name in names}
    message = f"{kind.__name__}: got an unexpected keyword argument 'v_thresh'. It takes {names}."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        kind(**given, v_thresh=1.0)
    kind(**given)
    with pytest.raises(TypeError, match=f"^{kind.__name__}: too many positional arguments"):
        kind(*[3] * 30)
