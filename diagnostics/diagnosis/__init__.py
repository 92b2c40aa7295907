"""What a merge did, to whom and why: paired tests per task, what leaving out changes, what is worth trying."""

from diagnostics.diagnosis.advice import Advice, Candidate, worth_trying
from diagnostics.diagnosis.changes import Changes, Trial, measured, split_of
from diagnostics.diagnosis.coefficients import CoefficientMap, coefficient_map
from diagnostics.diagnosis.layers import LayerGroup, layer_groups
from diagnostics.diagnosis.result import Diagnosis, LayerChange, ScaleChange
from diagnostics.diagnosis.verdicts import HURT, NEUTRAL, SERVED, TaskVerdict, Word, sign_test, verdicts

__all__ = [
    "HURT",
    "NEUTRAL",
    "SERVED",
    "Advice",
    "Candidate",
    "Changes",
    "CoefficientMap",
    "Diagnosis",
    "LayerChange",
    "LayerGroup",
    "ScaleChange",
    "TaskVerdict",
    "Trial",
    "Word",
    "coefficient_map",
    "layer_groups",
    "measured",
    "sign_test",
    "split_of",
    "verdicts",
    "worth_trying",
]
