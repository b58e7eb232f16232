"""Answers that a compiled graph may hold as constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_in_graphs(function: Function) -> Function:
    """Say that a function always gives the same answer, which a compiled graph then holds.

    What `torch.compiler.assume_constant_result` does, but that loads the compiler, which takes as long as the rest of
    torch: for programs that compile nothing, half of their start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
