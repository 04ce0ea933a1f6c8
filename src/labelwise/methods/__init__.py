"""The registry: a name for every method. One line adds one; nothing is imported before it is asked for.

Other packages add methods through the entry-point group ``labelwise.methods`` (name = "module:Class").
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import cast

from labelwise.errors import ConfigError, did_you_mean
from labelwise.methods.base import Method

METHODS: dict[str, str] = {
    "naive": "labelwise.methods.naive:Naive",
    "supervised": "labelwise.methods.supervised:Supervised",
    "self_training": "labelwise.methods.self_training:SelfTraining",
    "target_adaptive": "labelwise.methods.target_adaptive:TargetAdaptive",
    "marginal_exclusion": "labelwise.methods.marginal_exclusion:MarginalExclusion",
    "leaf_dice": "labelwise.methods.leaf_dice:LeafDice",
    "pipo_fan": "labelwise.methods.pipo_fan:PyramidInPyramidOut",
    "dodnet": "labelwise.methods.dodnet:Dodnet",
    "conemos": "labelwise.methods.conemos:CoNeMOS",
    "multi_talent": "labelwise.methods.multi_talent:MultiTalent",
    "pl_seg": "labelwise.methods.pl_seg:PLSeg",
    "ltuda_cda": "labelwise.methods.ltuda_cda:LtudaCda",
    "ltuda": "labelwise.methods.ltuda:Ltuda",
    "mean_teacher": "labelwise.methods.mean_teacher:MeanTeacher",
    "ua_mt": "labelwise.methods.ua_mt:UncertaintyAwareMeanTeacher",
    "bcp_pretraining": "labelwise.methods.bcp_pretraining:BcpPretraining",
    "bcp": "labelwise.methods.bcp:Bcp",
    "unimatch": "labelwise.methods.unimatch:UniMatch",
    "cps": "labelwise.methods.cps:Cps",
    "ucmt": "labelwise.methods.ucmt:Ucmt",
    "sassnet": "labelwise.methods.sassnet:Sassnet",
    "dtc": "labelwise.methods.dtc:DualTaskConsistency",
    "urpc": "labelwise.methods.urpc:Urpc",
    "guidednet": "labelwise.methods.guidednet:GuidedNet",
    "mc_net": "labelwise.methods.mc_net:MCNet",
    "mc_net_plus": "labelwise.methods.mc_net:MCNetPlus",
    "caml": "labelwise.methods.caml:CAML",
    "dkuxnet": "labelwise.methods.dkuxnet:DKUXNet",
    "arco_pretraining": "labelwise.methods.arco_pretraining:ArcoPretraining",
    "arco": "labelwise.methods.arco:Arco",
    "ss_net": "labelwise.methods.ss_net:SsNet",
}


def method_names() -> tuple[str, ...]:
    """All names that `find_method` knows, ours first."""
    return tuple(METHODS) + tuple(point.name for point in entry_points(group="labelwise.methods"))


def find_method(name: str) -> type[Method]:
    """The class of a registered method."""
    target = METHODS.get(name)
    if target is None:
        target = next((point.value for point in entry_points(group="labelwise.methods", name=name)), None)
    if target is None:
        known = method_names()
        raise ConfigError(f"unknown method '{name}'{did_you_mean(name, known)}", expected=", ".join(known))
    module, _, attribute = target.partition(":")
    return cast(type[Method], getattr(importlib.import_module(module), attribute))


def stages_of(method: type[Method]) -> tuple[type[Method], ...]:
    """The methods that are trained one after the other; the given one is the last."""
    stages = [method]
    while (earlier := stages[0].follows) is not None:
        stages.insert(0, earlier)
    return tuple(stages)
