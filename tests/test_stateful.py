import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlrun.stateful import ARRAY, Stateful, StateMismatch

Disk = Callable[[Any], Any]


class Holder(Stateful):
    """Holds whatever attributes it is given."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Counter(Stateful):
    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.saves = self.loads = 0

    def state_dict(self) -> dict[str, Any]:
        self.saves += 1
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loads += 1
        self.count = state["count"]


@dataclass(kw_only=True, eq=False)
class Learner(Stateful):
    """Configuration in plain fields, state elsewhere; a field with a state of its own is state, too."""

    transient: ClassVar[frozenset[str]] = frozenset({"buffer"})

    gamma: float
    sizes: list[int]
    part: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.updates = 0
        self.buffer: Any = object()


def same(a: Any, b: Any) -> bool:
    """Say whether two values are equal in type and in every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


# --- What comes back ------------------------------------------------------------------------------------

VALUES = [
    (5, 0),
    (True, False),
    (0.1, 0.0),
    (float("inf"), 0.0),
    ("text", ""),
    (None, 3),
    (3, None),
    (2**70, 0),
    ([1, 2.5, "x", None], []),
    ([[1], [2, [3]]], [[0], [0, [0]]]),
    ({"a": 1, 2: {"b": [3]}}, {}),
    ((1, 2), (0, 0)),
    (torch.arange(4.0), torch.zeros(4)),
    (torch.arange(4), torch.zeros(2, dtype=torch.int64)),
    (np.arange(6.0).reshape(2, 3), np.zeros((2, 3))),
    (np.array([True, False]), np.zeros(2, bool)),
    (np.arange(3, dtype=np.uint8), np.zeros(0, np.uint8)),
    (np.arange(12.0).reshape(3, 4).T, np.zeros((4, 3))),
    (np.array(3.5), np.array(0.0)),
    (deque([1, 2, 3], maxlen=3), deque(maxlen=3)),
    (deque([1.5]), deque()),
    # What was not there yet when the object was made has nothing to say what type it had.
    (np.arange(3.0), None),
    ([np.arange(3.0)], []),
    ({"a": np.arange(3.0)}, {}),
    ((1, (2.5, "x")), None),
    (deque([np.arange(3.0)]), deque()),
    (deque([(1, 2.5)]), deque()),
]


@pytest.mark.parametrize(("value", "fresh"), VALUES, ids=lambda v: f"{type(v).__name__}-{v}"[:30])
def test_values_come_back_with_type_shape_and_bits(value: Any, fresh: Any, through_disk: Disk) -> None:
    stored = through_disk(Holder(x=value).state_dict())
    other = Holder(x=fresh)
    other.load_state_dict(stored)
    assert same(other.x, value)


@pytest.mark.parametrize("value", [np.float64(0.1), np.float32(0.1), np.int64(7), np.bool_(True)], ids=repr)
def test_numpy_scalars_are_stored_as_plain_numbers(value: Any, through_disk: Disk) -> None:
    stored = through_disk(Holder(x=value, deep=[{"x": value}]).state_dict())
    assert stored == {"x": value.item(), "deep": [{"x": value.item()}]}
    assert type(stored["x"]) is type(value.item())


def test_a_deque_keeps_its_bound() -> None:
    holder = Holder(x=deque(maxlen=2))
    holder.load_state_dict({"x": [1, 2]})
    holder.x.append(3)
    assert list(holder.x) == [2, 3]


def test_a_restored_array_can_be_written_and_shares_nothing_with_the_file(through_disk: Disk) -> None:
    stored = through_disk(Holder(x=np.ones(3)).state_dict())
    holder = Holder(x=np.zeros(3))
    holder.load_state_dict(stored)
    holder.x += 1
    assert stored["x"][ARRAY].tolist() == [1, 1, 1]


def test_a_tensor_is_restored_in_place_because_others_may_hold_it() -> None:
    shared = torch.zeros(3)
    holder = Holder(x=shared)
    holder.load_state_dict({"x": torch.ones(3)})
    assert holder.x is shared
    assert shared.tolist() == [1, 1, 1]


def test_a_parameter_of_another_shape_is_refused_by_name() -> None:
    holder = Holder(weight=nn.Parameter(torch.zeros(3)))
    with pytest.raises(StateMismatch, match=r"Holder\.weight.*\(4,\).*\(3,\)"):
        holder.load_state_dict({"weight": torch.zeros(4)})


BIT_GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]


@pytest.mark.parametrize("kind", BIT_GENERATORS)
def test_numpy_generators_go_on_where_they_were(kind: Any, through_disk: Disk) -> None:
    holder = Holder(rng=np.random.Generator(kind(1)))
    holder.rng.integers(100, size=3, dtype=np.int32)  # leaves half a 64-bit word in the generator
    stored = through_disk(holder.state_dict())
    expected = holder.rng.integers(100, size=9, dtype=np.int32).tolist()
    other = Holder(rng=np.random.Generator(kind(2)))
    other.load_state_dict(stored)
    assert other.rng.integers(100, size=9, dtype=np.int32).tolist() == expected


def test_python_generators_go_on_where_they_were(through_disk: Disk) -> None:
    holder = Holder(rng=random.Random(1))
    holder.rng.gauss(0, 1)  # leaves a second one in the generator
    stored = through_disk(holder.state_dict())
    expected = [holder.rng.gauss(0, 1) for _ in range(5)]
    other = Holder(rng=random.Random(2))
    other.load_state_dict(stored)
    assert [other.rng.gauss(0, 1) for _ in range(5)] == expected


def test_a_generator_of_another_kind_of_device_stays_fresh() -> None:
    # What a GPU's generator is stored as: 16 bytes, which a CPU's refuses.
    holder = Holder(rng=torch.Generator().manual_seed(3))
    holder.load_state_dict({"rng": {"device": "cuda", "state": torch.zeros(16, dtype=torch.uint8)}})
    assert torch.equal(torch.randn(3, generator=holder.rng), torch.randn(3, generator=torch.Generator().manual_seed(3)))


def test_torch_generators_go_on_where_they_were(through_disk: Disk) -> None:
    holder = Holder(rng=torch.Generator().manual_seed(1))
    torch.randn(3, generator=holder.rng)
    stored = through_disk(holder.state_dict())
    expected = torch.randn(5, generator=holder.rng)
    other = Holder(rng=torch.Generator().manual_seed(2))
    other.load_state_dict(stored)
    assert torch.equal(torch.randn(5, generator=other.rng), expected)


def network_and_optimizer(seed: int) -> Holder:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return Holder(net=net, optimizer=torch.optim.Adam(net.parameters(), lr=0.1))


def train(holder: Holder, steps: int) -> None:
    x = torch.arange(15.0).reshape(5, 3)
    for _ in range(steps):
        holder.optimizer.zero_grad()
        holder.net(x).square().sum().backward()
        holder.optimizer.step()


def test_training_goes_on_bit_for_bit_after_a_restore(through_disk: Disk) -> None:
    undisturbed, other = network_and_optimizer(0), network_and_optimizer(1)
    train(undisturbed, 3)
    other.load_state_dict(through_disk(undisturbed.state_dict()))
    train(undisturbed, 3)
    train(other, 3)
    for a, b in zip(undisturbed.net.state_dict().values(), other.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_restore_keeps_the_optimizer_tied_to_the_network(through_disk: Disk) -> None:
    holder = network_and_optimizer(0)
    parameters = list(holder.net.parameters())
    holder.load_state_dict(through_disk(holder.state_dict()))
    assert all(a is b for a, b in zip(parameters, holder.net.parameters(), strict=True))
    train(holder, 1)
    assert all(p.grad is not None for p in holder.net.parameters())


# --- What is configuration ------------------------------------------------------------------------------


def test_plain_fields_are_configuration_and_keep_their_new_values() -> None:
    old = Learner(gamma=0.9, sizes=[1, 2], part=Counter(5))
    old.updates = 7
    new = Learner(gamma=0.5, sizes=[3])
    new.load_state_dict(old.state_dict())
    assert (new.gamma, new.sizes) == (0.5, [3])
    assert (new.updates, new.part.count) == (7, 5)


def test_transient_attributes_are_neither_saved_nor_touched() -> None:
    learner = Learner(gamma=0.9, sizes=[])
    buffer, state = learner.buffer, learner.state_dict()
    assert state.keys() == {"part", "updates"}
    learner.load_state_dict(state)
    assert learner.buffer is buffer


def test_a_subclass_of_a_dataclass_keeps_the_inherited_fields_as_configuration() -> None:
    @dataclass(kw_only=True, eq=False)
    class Further(Learner):
        tau: float

    assert Further(gamma=0.9, sizes=[], tau=0.1).state_dict().keys() == {"part", "updates"}


# --- What is refused ------------------------------------------------------------------------------------


class Opaque:
    pass


UNSAVABLE: list[Any] = [Opaque(), {1, 2}, lambda: 0, b"bytes", 1 + 2j, iter([1]), Opaque]


@pytest.mark.parametrize("value", UNSAVABLE, ids=lambda v: type(v).__name__)
def test_what_cannot_be_saved_is_refused_by_attribute_and_type(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"Holder\.stuff is a {type(value).__name__}"):
        Holder(stuff=value).state_dict()


@pytest.mark.parametrize(
    ("value", "where"),
    [([0, Opaque()], r"Holder\.x\[1\]"), ({"a": {"b": Opaque()}}, r"Holder\.x\['a'\]\['b'\]")],
)
def test_the_refusal_says_where_in_a_container(value: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        Holder(x=value).state_dict()


def test_the_refusal_names_the_inner_object_that_holds_the_attribute() -> None:
    class Inner(Holder):
        pass

    with pytest.raises(TypeError, match=r"Inner\.stuff"):
        Holder(inner=Inner(stuff=Opaque())).state_dict()


def test_an_array_of_objects_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"Holder\.x"):
        Holder(x=np.array([Opaque(), None], dtype=object)).state_dict()


def test_a_refused_save_does_not_spoil_the_next() -> None:
    part = Counter()
    holder = Holder(part=part, stuff=Opaque())
    with pytest.raises(TypeError):
        holder.state_dict()
    holder.stuff = 1
    assert holder.state_dict() == {"part": {"count": 0}, "stuff": 1}


@pytest.mark.parametrize(
    ("state", "message"),
    [({"a": 1}, r"lacks \['b'\]"), ({"a": 1, "b": 2, "c": 3}, r"unknown \['c'\]"), ({}, r"lacks \['a', 'b'\]")],
)
def test_a_state_with_other_names_is_refused_and_changes_nothing(state: dict[str, int], message: str) -> None:
    holder = Holder(a=0, b=0)
    with pytest.raises(StateMismatch, match=message):
        holder.load_state_dict(state)
    assert (holder.a, holder.b) == (0, 0)


# --- Objects that hang on several owners ----------------------------------------------------------------


def test_a_shared_object_is_saved_and_restored_once(through_disk: Disk) -> None:
    part = Counter(3)
    state = Holder(one=Holder(part=part), two=[part], three={"x": part}).state_dict()
    assert part.saves == 1
    other = Counter()
    Holder(one=Holder(part=other), two=[other], three={"x": other}).load_state_dict(through_disk(state))
    assert (other.count, other.loads) == (3, 1)


def test_objects_that_refer_to_each_other_are_saved_without_end(through_disk: Disk) -> None:
    def pair(count: int) -> Holder:
        owner = Holder(count=count)
        owner.part = Holder(owner=owner, count=count + 1)
        return owner

    restored = pair(0)
    restored.load_state_dict(through_disk(pair(5).state_dict()))
    assert (restored.count, restored.part.count) == (5, 6)
    assert restored.part.owner is restored


def test_two_walks_do_not_know_of_each_other() -> None:
    part = Counter(3)
    holder = Holder(part=part)
    assert holder.state_dict() == holder.state_dict() == {"part": {"count": 3}}
