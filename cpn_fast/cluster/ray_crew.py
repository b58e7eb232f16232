"""The actors of a job on a Ray cluster: who has which images, and what becomes of those of an actor that is lost."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from types import ModuleType
from typing import Any

from cpn_fast.cluster.worker import Made, Sent, Worker
from cpn_fast.files.errors import DataError
from cpn_fast.files.jobs import Entry, bounded_map, error_entry
from cpn_fast.files.sent_work import SentWork

log = logging.getLogger(__name__)

CALL_SECONDS, MOST_IMAGES = 2.0, 128
"""A call takes about so long: transport then costs nothing, and little is lost with an actor."""
CALLS = 2
"""Of an actor at a time: the next images lie ready when it is through with those before."""
PATIENCE = 2.0
"""A worker may end so many times what the usual one takes for a group after the others have done the rest."""
LOOK_EVERY = 5.0
"""Seconds after which the cluster's machines are looked at again: some may have come."""
SLOW_START = 60.0
"""Seconds without any actor after which the reason is guessed aloud."""
FAILED_STARTS, BARREN_LOSSES = 3, 10
"""In a row, until it is given up: actors of one machine that ended before they began, and actors that ended over their
images, which all of those of a large machine do when it goes."""


@dataclass(eq=False)
class _Member:
    """An actor.

    Attributes:
        actor: its handle.
        node: where it is.
        host: the name of that machine; "" until it has begun.
        calls: how many it has been given and not yet answered.
        images: how many are in them.
        seconds: that it needs for one, by its last calls; None before the first.
    """

    actor: Any
    node: str
    host: str = ""
    calls: int = 0
    images: int = 0
    seconds: float | None = None
    lost: bool = False


@dataclass(frozen=True)
class _Call:
    """Images that an actor has been given; `last`: they were lost once before, and it has nothing else."""

    member: _Member
    items: Sequence[Any] = field(repr=False)
    last: bool


class RayCrew:
    """Actors on every machine of a cluster (a `Crew`).

    Args:
        ray: the package.
        jobs: what to do.
        sent: what each actor gets of it.
        pool: threads that write what was made.
        per_node: actors on each machine; None = one for each GPU, or one.
    """

    def __init__(
        self, ray: ModuleType, jobs: SentWork[Any, Any], sent: Sent, pool: Executor, per_node: int | None
    ) -> None:
        self._ray, self._jobs, self._pool, self._per_node = ray, jobs, pool, per_node
        self._sent = ray.put(sent)
        self._actor = ray.remote(Worker)
        self._members: list[_Member] = []
        self._starts: dict[Any, _Member] = {}
        self._calls: dict[Any, _Call] = {}
        self._failed_starts: Counter[str] = Counter()
        self._redoes: _Member | None = None
        self._barren = self._most = 0
        self._looked, self._idle_since = -math.inf, time.monotonic()
        self._reason = ""

    def gather(self, least: int = 1) -> None:
        """Wait for so many actors; the others join while these work."""
        log.info("waiting for the cluster's workers")
        while len(self._ready()) < least:
            self._recruit()
            for ref in self._next(list(self._starts)):
                self._started(self._starts.pop(ref), ref)
            self._warn_of_waiting()

    def entries(self, items: Sequence[Any]) -> Iterator[Entry]:
        """As `Crew` says."""
        for made in self._made(items):
            yield from bounded_map(self._pool, self._stored, made, 2 * self._jobs.workers + 1)

    def state(self) -> str:
        """How many actors there are, and on how many machines."""
        ready = self._ready()
        nodes = len({member.node for member in ready})
        return f"{len(ready)} worker{'s' * (len(ready) != 1)} on {nodes} node{'s' * (nodes != 1)}"

    def dismiss(self) -> None:
        """End the actors, whatever they do."""
        for member in self._members:
            self._ray.kill(member.actor)
        self._members.clear()

    def _ready(self) -> list[_Member]:
        return [member for member in self._members if member.host]

    def _stored(self, made: Made) -> Entry:
        entry, left = made
        if left is not None:
            self._jobs.store(entry, left)
        return entry

    def _made(self, items: Sequence[Any]) -> Iterator[list[Made]]:
        """What was made of the images, some at a time."""
        todo, left, again = iter(items), len(items), deque[Any]()
        while left or again or self._calls:
            self._recruit()
            redoes = self._who_redoes(again)
            for member in sorted(self._ready(), key=lambda each: each.calls):
                while left and member is not redoes and (size := min(left, self._size(member, left))):
                    left -= size
                    self._call(member, list(islice(todo, size)))
                if again and not member.calls and (member is redoes or not (left or self._is_late(member, 1, 0))):
                    self._call(member, [again.popleft()], last=True)
            for ref in self._next([*self._starts, *self._calls]):
                if ref in self._starts:
                    self._started(self._starts.pop(ref), ref)
                else:
                    yield self._answered(self._calls.pop(ref), ref, again)
            self._warn_of_waiting()

    def _next(self, refs: list[Any]) -> Sequence[Any]:
        """The first of these that is through; none after some seconds."""
        if not refs:
            time.sleep(LOOK_EVERY / 10)
            return ()
        done: Sequence[Any] = self._ray.wait(refs, num_returns=1, timeout=LOOK_EVERY)[0]
        return done

    def _size(self, member: _Member, left: int) -> int:
        """How many images a member gets now: for some seconds by its own pace, fewer towards the end, whole groups.

        0 where it has enough, or where the others will have done all that is left before it had done these: one
        that is ten times slower than they are would otherwise be waited for by all.
        """
        group, seconds = self._jobs.group, member.seconds
        if seconds is None:  # one group tells its pace
            return 0 if member.calls else group
        if member.calls == CALLS:
            return 0
        fair = left / sum(1 / pace for pace in self._paces()) / (2 * CALLS)
        size = group * max(1, int(min(min(CALL_SECONDS, fair) / seconds, MOST_IMAGES) / group))
        return 0 if self._is_late(member, size, left) else size

    def _is_late(self, member: _Member, size: int, left: int) -> bool:
        """Whether all others will have done the rest before a member has done so many images more."""
        paces = self._paces()
        if member.seconds is None or not self._calls:  # of whom nothing is known; or nobody else brings the next chance
            return False
        rest = (left + sum(len(call.items) for call in self._calls.values())) / sum(1 / pace for pace in paces)
        return member.seconds * (member.images + size) > rest + PATIENCE * median(paces) * self._jobs.group

    def _paces(self) -> list[float]:
        """Seconds of an image, of each member of whom they are known."""
        return [member.seconds for member in self._members if member.seconds is not None]

    def _who_redoes(self, again: deque[Any]) -> _Member | None:
        """The member that gets nothing new, to do once more what was lost: the fastest; None where nothing was."""
        if not again:
            self._redoes = None
        elif self._redoes is None or self._redoes.lost:
            known = [member for member in self._ready() if member.seconds is not None]
            self._redoes = min(known, key=lambda member: member.seconds or 0.0, default=None)
        return self._redoes

    def _call(self, member: _Member, items: Sequence[Any], last: bool = False) -> None:
        ref = member.actor.work.remote(items)
        self._calls[ref] = _Call(member, items, last)
        member.calls += 1
        member.images += len(items)

    def _answered(self, call: _Call, ref: Any, again: deque[Any]) -> list[Made]:
        """What a call has made; images of a lost actor join `again`, or are given up the second time."""
        call.member.calls -= 1
        call.member.images -= len(call.items)
        try:
            made, seconds = self._got(ref)
        except _Lost as loss:
            return self._after_loss(call, loss, again)
        self._barren = 0
        each, before = max(1e-6, seconds / max(1, len(made))), call.member.seconds
        call.member.seconds = each if before is None else 0.5 * (before + each)
        return made

    def _after_loss(self, call: _Call, loss: _Lost, again: deque[Any]) -> list[Made]:
        host = call.member.host
        self._barren += not call.member.lost
        self._forget(call.member)
        if self._barren >= max(BARREN_LOSSES, 3 * self._most):
            remedy = " What is done stays: rerun the same command to resume" if self._jobs.resumes else ""
            raise DataError(
                f"--engine ray: {self._barren} times in a row a worker ended over its images, the last on {host} "
                f"({loss}); is there memory enough?{remedy}"
            )
        if not call.last:
            log.warning("a worker on %s has ended (%s): its %d images are done again", host, loss, len(call.items))
            again.extend(call.items)
            return []
        self._barren = 0
        reason = f"two workers ended over this image, the last on {host} ({loss}): killed, or out of memory?"
        ids = [(self._jobs.id_of(item), self._jobs.image_of(item)) for item in call.items]
        return [(error_entry(image_id, image, f"{image}: {reason}"), None) for image_id, image in ids]

    def _started(self, member: _Member, ref: Any) -> None:
        try:
            member.host = self._got(ref)
        except _Lost as loss:
            self._forget(member)
            self._reason = str(loss)
            self._failed_starts[member.node] += 1
            if self._failed_starts[member.node] == FAILED_STARTS:
                log.warning("no worker starts on node %s, which is left out: %s", member.node[:8], loss)
        else:
            self._failed_starts.pop(member.node, None)
            self._idle_since = time.monotonic()

    def _got(self, ref: Any) -> Any:
        """What an actor gives. Raises _Lost where it has ended; DataError and OSError as it raised them."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DataError | OSError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise _Lost(reason_of(error)) from error

    def _forget(self, member: _Member) -> None:
        """An actor is no more: another takes its place, on its machine if that is still there."""
        if not member.lost:
            member.lost = True
            self._members.remove(member)
            self._ray.kill(member.actor)  # one that only could not be reached is not to work on
            self._looked = -math.inf

    def _recruit(self) -> None:
        """See that every machine has its actors."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        held = Counter(member.node for member in self._members)
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        able = [node for node in nodes if self._failed_starts[node["NodeID"]] < FAILED_STARTS]
        if nodes and not able and not self._members:
            raise DataError(f"--engine ray: no worker starts on any machine of the cluster: {self._reason}")
        for node in able:
            cpus, gpus = (node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))
            wanted = self._per_node or max(1, int(gpus))
            for _ in range(wanted - held[node["NodeID"]] if cpus or gpus else 0):
                self._hire(node["NodeID"], share_of(cpus, wanted), 1 / math.ceil(wanted / gpus) if gpus else 0.0)

    def _hire(self, node: str, cpus: float, gpus: float) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = self._actor.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=where).remote()
        member = _Member(actor, node)
        self._members.append(member)
        self._most = max(self._most, len(self._members))
        self._starts[actor.begin.remote(self._sent)] = member

    def _warn_of_waiting(self) -> None:
        if self._ready():
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > SLOW_START:
            self._idle_since = math.inf
            log.warning(
                "no worker has begun for %.0f s: are the cluster's processors and GPUs taken? `ray status` says so",
                SLOW_START,
            )


class _Lost(Exception):
    """An actor has ended, or cannot be reached."""


def reason_of(error: Exception) -> str:
    """Why an actor has ended, in a line: Ray says where it was first."""
    text = " ".join(str(error).split())
    text = text[text.find("The actor is ") if "The actor is " in text else 0 :]
    return text.partition(" Some common causes")[0][:240]


def share_of(cpus: float, workers: int) -> float:
    """The processors that each of a machine's workers takes: whole ones where there are enough."""
    share = cpus / workers
    return float(int(share)) if share >= 1 else math.floor(share * 1000) / 1000
