"""The options of quantisation: which of them go together, and which to try when the gate fails."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from confit_export.calibration import Calibration
from confit_export.gate import Verdict
from confit_export.quantize import INT8_SCHEMES, Scheme
from confit_export.sensitivity import Sweep
from confit_export.targets import Target
from confit_runtime.errors import UsageError
from confit_runtime.formatting import format_count

INT8_OPTIONS = ("--target", "--calibration", "--qat-epochs")  # without effect on a scheme that computes in fp32
FEW_CLIPS = 2  # a loss that more validation clips may show to be chance


@dataclass(frozen=True)
class Quantisation:
    """How to quantise a model; each field has the meaning of the `confit-edge export` option of that name."""

    scheme: Scheme = "static"
    target: Target = "portable"
    calibration: Calibration = "minmax"
    keep_fp32: tuple[str, ...] = ()
    qat_epochs: int = 0
    sweep_minutes: float = 20.0

    @property
    def given(self) -> list[str]:
        """The options that differ from their defaults."""
        return [
            f"--{field.name.replace('_', '-')}" for field in fields(self) if getattr(self, field.name) != field.default
        ]

    def check(self) -> None:
        """Raise UsageError for an option that has no effect with the scheme."""
        if self.scheme not in INT8_SCHEMES:
            _check_no_effect(f"--scheme {self.scheme}", "computes in fp32", self._given_int8)

    def advice(self, verdict: Verdict, sweep: Sweep | None, fixed_ranges: bool) -> str:
        """What to try after `verdict` failed. Each option is accepted together with those given, or says which to leave out.

        `fixed_ranges` says whether any layer has a range that the calibration fixed.
        """
        options = []
        if sweep and sweep.unmeasured:
            minutes = max(Quantisation.sweep_minutes, 2 * self.sweep_minutes)
            options.append(f"--sweep-minutes {minutes:g} ({format_count(sweep.unmeasured, 'layer')} not measured)")
        if fixed_ranges and self.calibration != "percentile":
            options.append("--calibration percentile")
        if self.scheme in INT8_SCHEMES:
            without = f" without {' and '.join(self._given_int8)}" if self._given_int8 else ""
            options += [] if self.qat_epochs else ["--qat-epochs 3"]
            options += [f"--scheme {scheme}{without}" for scheme in ("weight-only", "fp16")]
        elif self.scheme == "weight-only":
            options.append("--scheme fp16")
        if verdict.loses_too_much and verdict.clips_lost <= FEW_CLIPS and len(verdict.failures) == 1:
            options.append(f"more validation clips (one of {verdict.clips} is {100 / verdict.clips:.2f} points)")
        options.append("--no-quantize without the other options of quantisation")
        return f"try {_alternatives(options)}"

    @property
    def _given_int8(self) -> list[str]:
        return [option for option in self.given if option in INT8_OPTIONS]


def check_no_quantize(given: Collection[str]) -> None:
    """Raise UsageError for options of quantisation given with --no-quantize."""
    _check_no_effect("--no-quantize", "nothing is quantised", given)


def _check_no_effect(option: str, why: str, given: Collection[str]) -> None:
    """Raise UsageError for options that have no effect together with `option`."""
    if given:
        pronoun = "it" if len(given) == 1 else "them"
        raise UsageError(f"{option}: {why}, so {', '.join(given)} would have no effect; remove {pronoun} or {option}")


def _alternatives(options: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(options[:-1]), options[-1])))
