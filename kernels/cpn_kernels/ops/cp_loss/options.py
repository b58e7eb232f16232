"""The open readings of the complementary-pair losses as one value, the same for reference, kernels and methods."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from cpn_kernels.cam_norm import MapNorm


@dataclass(frozen=True)
class CpLossOptions:
    """How L_tcp (eq. 14) and L_cpcr (eq. 15) are read; each default is the default of a training run.

    Attributes:
        map_norm: normalisation of the maps, "minmax" or "max".
        pair_norm: hidden views are normalised by their "own" maximum, or by one at least that of I ("shared"; the
            maximum of I is a constant there); "image" puts all views on the scale of I, whose minimum and maximum are
            constants, so that no map is divided by its own peak.
        tcp: compute L_tcp, else it is 0.
        tcp_target: the constant side of L_tcp's first term: the map of the full "image", which the pair is then to
            reproduce, or the "pair"; "union" teaches the image what either view of the pair shows: the maximum of
            their raw maps at each position, normalised once. A view in which nothing is visible is not in it.
        cpcr: compute L_cpcr, else it is 0.
        ohem: share of L_cpcr's elements that count per image, the largest; in (0, 1].
        ohem_pool: they are chosen from the background and "present" classes, or from "all" channels.
        cpcr_target: "winner" (masked by the winner of Y_o, clamped to the share of the other view), "dense" (as it is)
            or "released" (each scaled map has its own background, the difference keeps the strongest of all channels).
        refined_pair_gradient: L_tcp's refined term also sends gradient into its pair, as the released code does.

    Raises:
        ValueError: for an unknown value, or a share out of range; it names the option and what is known.
    """

    map_norm: MapNorm = "minmax"
    pair_norm: Literal["own", "shared", "image"] = "own"
    tcp: bool = True
    tcp_target: Literal["image", "pair", "union"] = "image"
    cpcr: bool = True
    ohem: float = 0.2
    ohem_pool: Literal["present", "all"] = "present"
    cpcr_target: Literal["winner", "dense", "released"] = "winner"
    refined_pair_gradient: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if not 0 < self.ohem <= 1:
            raise ValueError(f"ohem is {self.ohem}; expected a share in (0, 1]")

    @property
    def has_kernel(self) -> bool:
        """Whether the Triton kernels know these options; the reference serves the others on every device."""
        return self.tcp_target != "union" and self.pair_norm != "image"

    def values(self) -> tuple[Any, ...]:
        """The options in the order of the fields, which is that of the operators' arguments."""
        return tuple(getattr(self, field.name) for field in fields(self))


_CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(hint) for name, hint in get_type_hints(CpLossOptions).items() if hint not in (bool, float)
}
"""Option of a fixed set -> its values."""

_SCHEMA_TYPES = {bool: "bool", float: "float"}

OPERATOR_ARGUMENTS = ", ".join(
    f"{_SCHEMA_TYPES.get(get_type_hints(CpLossOptions)[field.name], 'str')} {field.name}"
    for field in fields(CpLossOptions)
)
"""The options as arguments of a `torch.library` operator, which takes no dataclass."""
