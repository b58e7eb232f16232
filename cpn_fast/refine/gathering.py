"""Threads that wait for a GPU hand in what they have, and the first of them does the like ones together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Request(Generic[Given, Result]):
    """A request, equal to itself alone: what is given may be tensors."""

    kind: Hashable
    given: Given
    result: Result | None = None
    done: bool = False


class Gathering(Generic[Given, Result]):
    """One call at a time, of as much as waits for it.

    Args:
        call: does several requests of one kind, and gives as many results in their order.
        most: requests of one call.
    """

    def __init__(self, call: Callable[[Sequence[Given]], Sequence[Result]], most: int) -> None:
        self._call, self._most = call, most
        self._waiting: list[_Request[Given, Result]] = []
        self._list, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, kind: Hashable, given: Given) -> Result:
        """The result of a request, alone or with others of its kind.

        Args:
            kind: requests of one kind can be done together.
            given: what `call` takes one of.

        Raises:
            Exception: of `call` on this request alone. What fails together is done one by one, by each in its turn.
        """
        mine: _Request[Given, Result] = _Request(kind, given)
        with self._list:
            self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                self._serve(mine)
        assert mine.result is not None
        return mine.result

    def _serve(self, mine: _Request[Given, Result]) -> None:
        with self._list:
            self._waiting.remove(mine)
            others = [each for each in self._waiting if each.kind == mine.kind][: self._most - 1]
        served = [mine, *others]
        try:
            results = self._call([each.given for each in served])
        except Exception:
            if not others:
                raise
            served = [mine]
            results = self._call([mine.given])
        with self._list:
            for each, result in zip(served, results, strict=True):
                each.result, each.done = result, True
                if each is not mine:
                    self._waiting.remove(each)
