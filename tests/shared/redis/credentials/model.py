"""What the credential pool promises, told a second time in plain Python; the simulation compares the two step by step."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.redis.credentials.pool import LEASE_SECONDS
from shared.schema.credential import Granted, Minting, Nothing, Standing

MINUTE, HOUR, LIFE = 60_000, 3_600_000, int(LEASE_SECONDS * 1000)


@dataclass
class Credential:
    """One credential as it should be. Times in milliseconds, 0: never."""

    id: str
    origin: str
    secret: str
    state: str = "ready"
    generation: int = 1
    trial: int = 1
    strikes: int = 0
    reason: str = ""
    expires: int = 0
    vouched: int = 0
    hits: dict[str, int] = field(default_factory=dict)

    @property
    def stamp(self) -> bytes:
        return b"%d.%d" % (self.generation, self.trial)


@dataclass
class Lease:
    """One call. `worker` may be dead; `knows` is false if the reply was lost on the way to it."""

    granted: Granted
    worker: str
    model: str
    until: int
    knows: bool = True


class Truth:
    """The pool as it should be. Methods mirror the scripts; `now` is set before each of them."""

    def __init__(self, calls: int, minting: Minting, now: int) -> None:
        self.calls = calls
        self.minting = minting
        self.now = now
        self.known: dict[str, Credential] = {}
        self.leases: dict[str, Lease] = {}
        self.aside: dict[tuple[str, str], int] = {}
        """(reason, id) -> end. Outlives the record, as rests do."""
        self.rests: dict[tuple[str, str], int] = {}
        self.signups: list[int] = []
        self.signup: str | None = None
        self.signup_until = 0

    # What follows from the state

    def minted(self) -> list[Credential]:
        return [one for one in self.known.values() if one.origin == "minted" and one.state != "aside"]

    def load(self, credential_id: str) -> int:
        return sum(lease.granted.id == credential_id for lease in self.leases.values())

    def resting(self, credential_id: str, model: str) -> bool:
        return any(self.rests.get((credential_id, which), 0) > self.now for which in ("", model))

    def may_be_leased(self, one: Credential, model: str) -> bool:
        if one.state == "aside" or self.resting(one.id, model) or 0 < one.expires <= self.now:
            return False
        room = 1 if one.state == "probation" else self.calls
        return not room or self.load(one.id) < room

    # What time does

    def advance(self) -> None:
        for name in [name for name, lease in self.leases.items() if lease.until <= self.now]:
            del self.leases[name]
        over = sorted(
            (end, f"{reason} {who}", reason, who) for (reason, who), end in self.aside.items() if end <= self.now
        )
        for _, _, reason, who in over:
            del self.aside[reason, who]
        for _, _, _, who in over:
            self._come_back(who)
        for one in [one for one in self.known.values() if one.origin == "settings" and one.vouched <= self.now]:
            del self.known[one.id]

    def _come_back(self, who: str) -> None:
        one = self.known.get(who)
        if (
            one is None
            or one.state != "aside"
            or any((reason, who) in self.aside for reason in ("retired", "suspended"))
        ):
            return
        if one.origin == "minted" and len(self.minted()) >= self.minting.most:
            del self.known[who]
        else:
            one.state, one.trial = "probation", one.trial + 1

    # What the scripts do

    def register(self, own: Iterable[tuple[str, str]]) -> None:
        self.advance()
        for who, secret in own:
            one = self.known.setdefault(who, Credential(who, "settings", secret))
            if one.vouched == 0 and any((reason, who) in self.aside for reason in ("retired", "suspended")):
                one.state = "aside"
            one.vouched = self.now + LIFE

    def granted(self, answer: Granted, worker: str, model: str, tried: set[str], knows: bool) -> None:
        """A lease came: was it right to give it?"""
        self.advance()
        one = self.known[answer.id]
        assert self.may_be_leased(one, model), (one, model, self.load(one.id))
        assert one.id not in tried
        assert answer.stamp == one.stamp
        assert answer.opened is not None and answer.opened.secret == one.secret
        assert answer.name not in self.leases
        others = [other for other in self.known.values() if other.id not in tried and self.may_be_leased(other, model)]
        steady = [other for other in others if other.state == "ready"]
        if one.state == "probation":
            assert not tried or not steady, "the refused caller had better choices"
        assert self.load(one.id) == min(
            map(self.load, (other.id for other in (steady if tried and steady else others)))
        )
        self.leases[answer.name] = Lease(answer, worker, model, self.now + LIFE, knows)

    def nothing(self, answer: Nothing, model: str, tried: set[str]) -> None:
        """No lease came: was there really none? Is the hope neither false nor too late?"""
        self.advance()
        assert answer.known == len(self.known)
        others = [one for one in self.known.values() if one.id not in tried]
        assert not [one.id for one in others if self.may_be_leased(one, model)]
        ends = [
            end
            for one in others
            for end in (
                self._rest_end(one, model),
                max(self.aside.get(("retired", one.id), 0), self.aside.get(("suspended", one.id), 0)),
            )
            if end > self.now
        ]
        if not answer.coming and ends:
            assert answer.hope_seconds is not None
            assert self.now + round(answer.hope_seconds * 1000) <= min(ends)

    def _rest_end(self, one: Credential, model: str) -> int:
        return 0 if one.state == "aside" else max(self.rests.get((one.id, which), 0) for which in ("", model))

    def release(self, lease: Lease, verdict: str, wait: int | None) -> None:
        self.leases.pop(lease.granted.name, None)
        self.advance()
        one = self.known.get(lease.granted.id)
        if one is not None and one.stamp == lease.granted.stamp:
            self._judge(one, verdict, lease.model, wait)

    def _judge(self, one: Credential, verdict: str, model: str, wait: int | None) -> None:
        if verdict == "valid" and one.reason == "suspended":
            return  # it is known, but is it paid?
        if verdict in ("ok", "valid", "cleared"):
            if verdict != "ok":
                self.aside.pop(("retired", one.id), None)
                self.aside.pop(("suspended", one.id), None)
                one.state = "ready"
            if one.state != "aside":
                one.state, one.strikes = "ready", 0
            one.hits.pop(model, None)
        elif verdict == "rest":
            end = self.rests.get((one.id, model), 0)
            if wait is None:
                if end <= self.now:
                    one.hits[model] = one.hits.get(model, 0) + 1
                wait = min(1000 * 2 ** (min(one.hits.get(model, 1), 7) - 1), MINUTE)
            self.rests[one.id, model] = max(end, self.now + min(wait, HOUR))
        elif verdict in ("retire", "suspend"):
            if one.state != "aside":
                one.strikes += 1
            if one.origin == "minted" and one.strikes > 2:
                del self.known[one.id]
                return
            reason = {"retire": "retired", "suspend": "suspended"}[verdict]
            end = self.now + (10 * MINUTE if one.strikes < 2 else HOUR)
            self.aside[reason, one.id] = max(self.aside.get((reason, one.id), 0), end)
            one.state, one.reason = "aside", reason

    def renewed(self, held: list[Lease], vouched: list[str], lost: list[str], unknown: list[str]) -> None:
        """`held` by the worker that renewed, as far as it knew; `lost` and `unknown` is what it was told."""
        self.advance()
        for lease in held:
            name = lease.granted.name
            if name in self.leases or not self.calls or self.load(lease.granted.id) < self.calls:
                assert name not in lost
                lease.until = self.now + LIFE
                self.leases[name] = lease
            else:
                assert name in lost, "somebody else has its place"
        assert set(unknown) == set(vouched) - self.known.keys()
        for who in set(vouched) - set(unknown):
            self.known[who].vouched = self.now + LIFE

    def leave(self, worker: str) -> None:
        self.leases = {name: lease for name, lease in self.leases.items() if lease.worker != worker}

    # Sign-ups

    def signup_begins(self, token: str, seconds: float) -> None:
        self.advance()
        assert self.now >= self.signup_until, "two at the same time, or during a pause"
        assert len(self.minted()) < self.minting.most
        self.signups = [at for at in self.signups if at > self.now - HOUR]
        assert len(self.signups) < self.minting.per_hour
        self.signups.append(self.now)
        self.signup, self.signup_until = token, self.now + round(seconds * 1000)

    def added(self, who: str | None, secret: str, token: str, life: int) -> None:
        self.advance()
        if token == self.signup:
            self.signup, self.signup_until = None, 0
        if who is None:
            assert len(self.minted()) >= self.minting.most
        else:
            self.known.setdefault(who, Credential(who, "minted", secret, expires=self.now + life if life else 0))
        assert len(self.minted()) <= self.minting.most

    def refreshed(self, who: str, stamp: bytes, secret: str, life: int, accepted: bool) -> None:
        self.advance()
        one = self.known.get(who)
        assert accepted == (one is not None and one.stamp == stamp)
        if one is not None and accepted:
            one.generation, one.trial, one.secret = one.generation + 1, 1, secret
            one.expires = self.now + life if life else 0
            self.aside.pop(("retired", who), None)
            if one.state == "aside" and ("suspended", who) not in self.aside:
                one.state = "ready"

    def swept(self, present: set[str]) -> None:
        """A keeper looked: what has expired may be gone now, and nothing else."""
        for who in self.known.keys() - present:
            assert 0 < self.known[who].expires <= self.now
            del self.known[who]
        assert present == self.known.keys()

    def stands(self, seen: Standing) -> None:
        """What an operator sees is so."""
        one = self.known[seen.id]
        assert (seen.record.state, seen.record.strikes, seen.record.expires) == (one.state, one.strikes, one.expires)
        assert (seen.record.generation, seen.record.trial) == (one.generation, one.trial)
        assert seen.opened is not None and seen.opened.secret == one.secret
        assert seen.calls == self.load(one.id)
        for reason, seconds in (("retired", seen.retired_seconds), ("suspended", seen.suspended_seconds)):
            assert self.now + round(seconds * 1000) == max(self.now, self.aside.get((reason, one.id), 0)), reason
        rests = {model: end for (who, model), end in self.rests.items() if who == one.id and end > self.now}
        assert {model: self.now + round(seconds * 1000) for model, seconds in seen.rests.items()} == rests
