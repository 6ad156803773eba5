"""Models of a trial's arms in little memory: those that do not fit go, and are there again at their turn."""

from __future__ import annotations

import pytest

from broadsheet.trial import lazy
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.lazy import LazyModel, Memory, ModelPool

GIB = 1 << 30


class Machine:
    """Memory in which every model takes 3 GiB of 9, of which a tenth has to stay free: two fit."""

    def __init__(self, size: int = 3 * GIB, whole: int = 9 * GIB) -> None:
        self.size, self.whole = size, whole
        self.pool = ModelPool(self)
        self.models: dict[str, LazyModel] = {}
        self.made: list[str] = []

    def __call__(self) -> Memory:
        held = self.size * sum(each._made is not None for each in self.models.values()) + self.size * self._making
        return Memory(self.whole - held, self.whole, held)

    _making = 0

    def model(self, name: str) -> LazyModel:
        def make() -> str:
            self.made.append(name)
            self._making = 1  # it is there before whoever asked has it
            return name

        self.models[name] = LazyModel(make, self.pool)
        return self.models[name]

    def held(self) -> list[str]:
        return [name for name, each in self.models.items() if each._made is not None]

    def ask(self, name: str) -> None:
        assert self.models[name]() == name
        self._making = 0


@pytest.fixture
def machine() -> Machine:
    found = Machine()
    for name in "abc":
        found.model(name)
    return found


def test_what_fits_stays_and_the_last_one_used_goes_first(machine, capsys):
    for _ in range(3):
        for name in "abc":
            machine.ask(name)
            assert name in machine.held()
            assert len(machine.held()) <= 2
    # Of three in turns, two of them in memory, every second turn finds its model there. The one used longest ago would
    # be needed next: without it no turn would.
    assert machine.made == ["a", "b", "c", "b", "a", "c"]
    assert capsys.readouterr().err.count("memory is short") == 1


def test_where_all_fit_none_is_made_twice(capsys):
    roomy = Machine(whole=30 * GIB)
    for name in "abc":
        roomy.model(name)
    for name in "abcabc":
        roomy.ask(name)
    assert roomy.made == ["a", "b", "c"]
    assert "memory" not in capsys.readouterr().err


def test_small_models_stay_however_little_is_free():
    tight = Machine(size=1 << 20, whole=2 << 20)
    for name in "abc":
        tight.model(name)
    for name in "abcabc":
        tight.ask(name)
    assert tight.made == ["a", "b", "c"]


def test_room_is_made_for_the_largest_whatever_came_after_it():
    models: dict[str, tuple[LazyModel, int]] = {}
    making: list[str] = []

    def memory() -> Memory:
        held = sum(size for name, (each, size) in models.items() if each._made or name in making)
        return Memory(9 * GIB - held, 9 * GIB, held)

    pool = ModelPool(memory)
    for name, size in (("big", 5), *((f"small {i}", 1) for i in range(4)), ("other", 5)):
        models[name] = LazyModel(lambda name=name: making.append(name) or name, pool), size * GIB
        assert models[name][0]() == name
        making.clear()
    # Each may be as large as the first: it goes for the others, and the last of these for the other big one.
    assert [name for name, (each, _) in models.items() if each._made] == ["small 0", "small 1", "small 2", "other"]


def test_only_what_was_made_and_had_to_go_is_made_again(machine):
    machine.models["b"].again()
    assert machine.made == []
    for name in "abc":
        machine.ask(name)
    assert machine.held() == ["a", "c"]
    machine.models["b"].again()
    machine._making = 0
    assert machine.held() == ["a", "b"]
    machine.models["b"].again()
    assert machine.made == ["a", "b", "c", "b"]


def test_what_making_raised_is_raised_again_and_takes_no_room(machine):
    def fails() -> None:
        raise ValueError("no such weights")

    broken = LazyModel(fails, machine.pool)
    machine.ask("a")
    for _ in range(2):
        with pytest.raises(ValueError, match="no such weights"):
            broken()
    assert machine.held() == ["a"]


def test_the_machine_is_asked_what_is_free_and_what_this_process_holds():
    now = lazy._of_machine()
    assert 0 < now.own < now.whole
    assert 0 < now.free < now.whole


def test_a_model_is_there_when_its_turn_is_clocked():
    events: list[str] = []

    def arm(name: str, role: str) -> Arm:
        def run(block):
            events.append(f"{name} runs")
            return {"x": [1.0] * len(block)}

        return Arm(name, run, role, ready=lambda: events.append(f"{name} ready"))  # type: ignore[arg-type]

    run_arms([arm("base", "baseline"), arm("new", "method")], list(range(10)), [Metric("x")], block_size=10)
    turns = events[events.index("base ready") :]
    assert turns == ["base ready", "base runs", "new ready", "new runs", "base ready", "base runs"]
