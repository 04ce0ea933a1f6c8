"""The registry: a name for every method. One line adds one; nothing is imported before it is asked for.

Other packages add methods through the entry-point group ``labelwise.methods`` (name = "module:Class").
"""

from __future__ import annotations

import importlib
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from labelwise.methods.card import Card, read_card
from labelwise.plugins import Parts

# Who only lists the methods waits for no torch.
if TYPE_CHECKING:
    from labelwise.methods.base import Method

METHODS: dict[str, str] = {
    "naive": "labelwise.methods.naive:Naive",
    "supervised": "labelwise.methods.supervised:Supervised",
    "self_training": "labelwise.methods.self_training.method:SelfTraining",
    "noisy_student": "labelwise.methods.self_training.second_round:NoisyStudent",
    "add_class": "labelwise.methods.add_class:AddClass",
    "target_adaptive": "labelwise.methods.target_adaptive:TargetAdaptive",
    "marginal_exclusion": "labelwise.methods.marginal_exclusion:MarginalExclusion",
    "leaf_dice": "labelwise.methods.leaf_dice:LeafDice",
    "pipo_fan": "labelwise.methods.pipo_fan.method:PyramidInPyramidOut",
    "dodnet": "labelwise.methods.dodnet.method:Dodnet",
    "conemos": "labelwise.methods.conemos.method:CoNeMOS",
    "multi_talent": "labelwise.methods.multi_talent:MultiTalent",
    "pl_seg": "labelwise.methods.pl_seg.method:PLSeg",
    "ltuda_cda": "labelwise.methods.ltuda.cda:LtudaCda",
    "ltuda": "labelwise.methods.ltuda.method:Ltuda",
    "mean_teacher": "labelwise.methods.mean_teacher:MeanTeacher",
    "ua_mt": "labelwise.methods.ua_mt:UncertaintyAwareMeanTeacher",
    "bcp_pretraining": "labelwise.methods.bcp.pretraining:BcpPretraining",
    "bcp": "labelwise.methods.bcp.method:Bcp",
    "unimatch": "labelwise.methods.unimatch:UniMatch",
    "cps": "labelwise.methods.cps:Cps",
    "ucmt": "labelwise.methods.ucmt.method:Ucmt",
    "sassnet": "labelwise.methods.sassnet.method:Sassnet",
    "dtc": "labelwise.methods.dtc:DualTaskConsistency",
    "urpc": "labelwise.methods.urpc.method:Urpc",
    "guidednet": "labelwise.methods.guidednet.method:GuidedNet",
    "mc_net": "labelwise.methods.mc_net:MCNet",
    "mc_net_plus": "labelwise.methods.mc_net:MCNetPlus",
    "caml": "labelwise.methods.caml.method:CAML",
    "dkuxnet": "labelwise.methods.dkuxnet.method:DKUXNet",
    "arco_pretraining": "labelwise.methods.arco.pretraining:ArcoPretraining",
    "arco": "labelwise.methods.arco.method:Arco",
    "ss_net": "labelwise.methods.ss_net.method:SsNet",
}


def _is_method(part: Any) -> bool:
    base = importlib.import_module("labelwise.methods.base")
    return issubclass(part, base.Method) and isinstance(part.card, Card) and is_dataclass(part.Config)


PARTS: Parts[type[Method]] = Parts(
    "method",
    "labelwise.methods",
    METHODS,
    "a subclass of labelwise.Method with a card and a dataclass Config",
    _is_method,
)


def find_method(name: str) -> type[Method]:
    """The class of a registered method.

    Errors
        ConfigError     there is no such method, or it comes from a package that is broken
    """
    return PARTS.find(name)


def all_cards() -> dict[str, Card]:
    """The card of every method that can be used, by name. Only others' methods are imported for it."""
    return {name: _card(name) for name in METHODS} | {
        name: method.card for name, method in PARTS.theirs().items()
    }


def _card(name: str) -> Card:
    try:
        return read_card(METHODS[name])
    except ValueError:
        return find_method(name).card


def name_of(method: type[Method]) -> str:
    """The registered name of a method; that of its class if it is not registered."""
    return PARTS.name_of(method)


def stages_of(method: type[Method]) -> tuple[type[Method], ...]:
    """The methods that are trained one after the other; the given one is the last."""
    stages = [method]
    while (earlier := stages[0].follows) is not None:
        stages.insert(0, earlier)
    return tuple(stages)
