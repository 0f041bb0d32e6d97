"""Modules that run beside those that are trained."""

import copy
from typing import Any

import torch
from torch import nn

from scaleproof.observe.beside import MAX_NUMBERS, ModulesBeside
from scaleproof.observe.guard import Troubles
from scaleproof.observe.model import ModelInventory


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.head = nn.Linear(4, 2)


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3 * MAX_NUMBERS + 1))


def beside(student: nn.Module) -> tuple[ModulesBeside, dict[int, Any]]:
    """What was found beside ``student``, and the ids that are listened to."""
    inventory = ModelInventory()
    inventory.add(student)
    found = ModulesBeside(inventory, Troubles())
    found.find()
    called: dict[int, Any] = {id(student): "root"}
    found.wait(called)
    return found, called


def names(found: ModulesBeside) -> list[str]:
    return [name for name, _ in found.parameters()]


def test_a_teacher_is_known_when_it_is_first_called():
    student = Student()
    teacher = copy.deepcopy(student)
    found, called = beside(student)

    assert found.labels() == ()
    assert id(teacher) in called
    assert found.ran(teacher, called)
    assert found.labels() == ("Student (not trained).",)
    assert "Student (not trained).body.0.weight" in names(found)
    assert not set(map(id, teacher.modules())) & called.keys()  # nothing more to listen to


def test_a_module_inside_another_names_the_outer_one():
    student, encoder = Student(), nn.Linear(3, 3)
    holder = Holder(encoder)
    found, called = beside(student)

    assert found.ran(encoder, called)
    assert names(found) == ["Holder (not trained).inner.weight", "Holder (not trained).inner.bias"]
    del holder


def test_the_trained_model_is_not_beside_itself():
    student = Student()
    found, called = beside(student)

    assert id(student.body) not in called
    assert not found.ran(student, called)
    assert called[id(student)] == "root"


def test_two_of_a_class_are_numbered_as_they_ran():
    student = Student()
    first, second = nn.Linear(1, 1), nn.Linear(2, 2)
    found, called = beside(student)
    found.ran(second, called)
    found.ran(first, called)

    assert found.labels() == ("Linear (not trained).", "Linear (not trained, 2).")
    assert dict(found.parameters())["Linear (not trained).weight"].shape == (2, 2)


def test_of_a_large_tensor_evenly_spaced_numbers_are_looked_at():
    student, wide = Student(), Wide()
    found, called = beside(student)
    found.ran(wide, called)
    (_, values), *_ = found.parameters()

    assert MAX_NUMBERS // 2 < values.numel() <= MAX_NUMBERS
    wide.weight.data[0] = 1.0
    assert values[0] == 1.0  # where it is, not a copy


def test_what_shares_all_its_parameters_with_the_model_is_not_beside_it():
    student = Student()
    tied = nn.Linear(4, 2)
    tied.weight, tied.bias = student.head.weight, student.head.bias
    _, called = beside(student)

    assert id(tied) not in called


def test_another_module_with_an_id_of_one_that_is_gone_is_not_taken_for_it():
    student, gone, other = Student(), nn.Linear(1, 1), nn.Linear(2, 2)
    found, called = beside(student)
    found._waiting[id(other)] = found._waiting[id(gone)]

    assert found.ran(other, called)
    assert found.labels() == ()


def test_parameters_without_a_shape_yet_are_left_out():
    student, lazy = Student(), nn.LazyLinear(2)
    found, called = beside(student)

    assert found.ran(lazy, called)
    assert names(found) == []
    assert not found.troubles.any
