"""One list says of what an agent consists, and whoever carries out a graft reads it."""

import dataclasses
from typing import get_args

import pytest

from popgraft.config.population import GraftFault
from popgraft.foreign.transplant import GraftFault as ForeignFault
from popgraft.inheritance.faults import KEEPS, RULES, kept
from popgraft.inheritance.parts import PARTS
from popgraft.sb3.parts import PARTS as SB3_PARTS
from popgraft.state import Member


def test_the_parts_are_those_of_a_member():
    assert sorted(part.name for part in PARTS) == sorted(field.name for field in dataclasses.fields(Member))


def test_models_hold_the_same_parts():
    assert {part.entry: part.attributes[-1] for part in PARTS if part.attributes} == SB3_PARTS


@pytest.mark.parametrize("faults", [GraftFault, ForeignFault])
def test_faults_name_what_there_is(faults):
    assert set(KEEPS.values()) <= {part.name for part in PARTS}
    assert set(KEEPS) <= set(get_args(faults))
    assert kept(get_args(faults)) == set(KEEPS.values())


def test_every_fault_of_the_configuration_has_a_rule():
    assert set(RULES) == set(get_args(GraftFault))
