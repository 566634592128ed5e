"""The arithmetic of leases under everything that may happen: messages lost, doubled and late, holders and limiter killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.coordination.epochs import next_epoch
from cluster.limits.account import Held
from cluster.limits.lease import Exchange, Holder
from cluster.limits.limiter import NAME, Answer, Limiter, UnknownHolderError
from tests.memory_coordination import MemoryCoordination
from tests.sizes import soak

TENANT, AGENTS = "tenant.t.total.tokens", ("agent.t.a.total.tokens", "agent.t.b.total.tokens")
BOUNDS = {TENANT: 100, AGENTS[0]: 60, AGENTS[1]: 70}


@dataclass
class Process:
    """A process that holds leases, and its journal, which outlives it."""

    journal: str
    holder: Holder
    alive: bool = True
    settled: dict[str, int] = field(default_factory=dict)
    open: dict[str, dict[str, int]] = field(default_factory=dict)

    def folded(self, names: list[str]) -> None:
        for name in names:
            self.settled.pop(name, None)


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryCoordination()
        self.limiter = Limiter(self.store, next_epoch(self.store, NAME))
        self.processes: list[Process] = []
        self.to_limiter: list[tuple[Process, Exchange]] = []
        self.to_holder: list[tuple[Process, int, dict[str, Answer]]] = []
        self.calls = 0
        # What really happened: spent by calls that ended, and reserved by those that run.
        self.spent = dict.fromkeys(BOUNDS, 0)
        self.running: dict[str, dict[str, int]] = {}
        # Of calls whose process died: what they used is known by their agents alone.
        self.used: dict[str, int] = {}

    @initialize()
    def begin(self) -> None:
        self.start()
        self.start()

    @precondition(lambda self: len(self.processes) < 6)
    @rule()
    def start(self) -> None:
        journal = f"j{len(self.processes)}"
        epoch = self.limiter.open(journal, "")
        assert self.limiter.open(journal, "") == epoch
        self.processes.append(Process(journal, Holder(epoch)))

    @rule(data=st.data(), amount=st.integers(1, 30), agent=st.sampled_from(AGENTS))
    def call(self, data: st.DataObject, amount: int, agent: str) -> None:
        process = self.some(data)
        if process is not None and not self.reserve(process, {TENANT: amount, agent: amount}):
            lacks = process.holder.lacking({TENANT: amount, agent: amount})
            if asked := process.holder.ask(dict.fromkeys(lacks, amount)):
                self.to_limiter.append((process, asked))

    @rule(data=st.data(), share=st.integers(0, 4))
    def end_call(self, data: st.DataObject, share: int) -> None:
        if self.running:
            name = data.draw(st.sampled_from(sorted(self.running)))
            amount = self.running[name][TENANT] * share // 4
            process = next(p for p in self.processes if name in p.open or name in self.used)
            owner = next((p for p in self.processes if name in p.open), process)
            if owner.alive:
                self.settle(owner, name, amount)
            else:
                self.used.setdefault(name, amount)

    @rule(data=st.data())
    def say(self, data: st.DataObject) -> None:
        process = self.some(data)
        if process is not None and (asked := process.holder.ask({})):
            self.to_limiter.append((process, asked))

    @rule(data=st.data())
    def tidy(self, data: st.DataObject) -> None:
        process = self.some(data)
        if process is not None:
            process.holder.end_idle()

    @rule(data=st.data(), names=st.sets(st.sampled_from(sorted(BOUNDS))))
    def called_back(self, data: st.DataObject, names: set[str]) -> None:
        process = self.some(data)
        if process is not None:
            process.holder.give_back(names)

    @precondition(lambda self: self.to_limiter)
    @rule(data=st.data(), again=st.booleans(), lost=st.booleans())
    def deliver(self, data: st.DataObject, again: bool, lost: bool) -> None:
        """In any order; some twice; the answers of some are lost."""
        index = data.draw(st.integers(0, len(self.to_limiter) - 1))
        process, asked = self.to_limiter[index] if again else self.to_limiter.pop(index)
        answer = self.exchange(asked)
        if answer is not None and not lost:
            self.to_holder.append((process, asked.number, answer))

    @precondition(lambda self: self.to_limiter)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.to_limiter.pop(data.draw(st.integers(0, len(self.to_limiter) - 1)))

    @precondition(lambda self: self.to_holder)
    @rule(data=st.data(), again=st.booleans())
    def answer(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.to_holder) - 1))
        process, number, answers = self.to_holder[index] if again else self.to_holder.pop(index)
        if process.alive:
            process.folded(process.holder.apply(number, answers))

    @rule(data=st.data())
    def kill_holder(self, data: st.DataObject) -> None:
        process = self.some(data)
        if process is not None:
            process.alive = False

    @rule()
    def kill_limiter(self) -> None:
        self.limiter = Limiter(self.store, next_epoch(self.store, NAME))

    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        dead = [p for p in self.processes if not p.alive]
        if dead:
            self.recover_one(data.draw(st.sampled_from(dead)))

    @rule()
    def look_up(self) -> None:
        """Ask the agents what became of calls whose process is gone."""
        for name, held in self.limiter.held().items():
            if name in self.used:
                self.resolve(name, held)

    @rule(data=st.data(), agent=st.sampled_from(AGENTS))
    def spend_the_rest(self, data: st.DataObject, agent: str) -> None:
        """Whatever is not spent or under way can be reserved by anyone at once, to the last unit."""
        process = self.some(data)
        if process is None:
            return
        self.look_up()
        for dead in [p for p in self.processes if not p.alive]:
            self.recover_one(dead)
        self.look_up()
        free = min(BOUNDS[n] - self.spent[n] - sum(c.get(n, 0) for c in self.running.values()) for n in (TENANT, agent))
        amounts = {TENANT: free, agent: free}
        if not free:
            return
        for _ in range(6):
            if self.reserve(process, amounts):
                return
            self.pump(process, process.holder.lacking(amounts))
        raise AssertionError(f"{free} are free of {agent}, and can't be had")

    @invariant()
    def never_over(self) -> None:
        for name, bound in BOUNDS.items():
            under_way = sum(c.get(name, 0) for c in self.running.values())
            assert self.spent[name] + under_way <= bound
            used, taken = self.limiter.use_of(name)
            assert used <= taken <= bound
            assert self.spent[name] + under_way <= taken

    def teardown(self) -> None:
        """Nothing leaks: after everything ended, nothing is granted, and settled is what ran."""
        for name in sorted(self.running):
            owner = next(p for p in self.processes if name in p.open)
            if owner.alive:
                self.settle(owner, name, self.running[name][TENANT])
            else:
                self.used.setdefault(name, 1)
        for process in self.processes:
            if process.alive:
                for _ in range(3):
                    self.pump(process, {})
                    process.holder.end_idle()
                self.pump(process, {})
                assert not process.holder.leases
            else:
                self.recover_one(process)
        self.look_up()
        for name in BOUNDS:
            assert self.limiter.use_of(name) == (self.spent[name], self.spent[name])

    # What the rules are made of.

    def some(self, data: st.DataObject) -> Process | None:
        alive = [p for p in self.processes if p.alive]
        return data.draw(st.sampled_from(alive)) if alive else None

    def reserve(self, process: Process, amounts: Mapping[str, int]) -> bool:
        name = f"r{self.calls}"
        if not process.holder.reserve(name, amounts):
            return False
        self.calls += 1
        process.open[name] = self.running[name] = dict(amounts)
        return True

    def settle(self, process: Process, name: str, used: int) -> None:
        amounts = self.running.pop(name)
        spent = dict.fromkeys(amounts, used)
        del process.open[name]
        for account in amounts:
            process.settled[account] = process.settled.get(account, 0) + used
            self.spent[account] += used
        process.holder.settle(name, spent)

    def exchange(self, asked: Exchange) -> dict[str, Answer] | None:
        try:
            return self.limiter.exchange(asked.epoch, asked.number, asked.reports, BOUNDS)
        except UnknownHolderError:
            return None

    def pump(self, process: Process, needs: Mapping[str, int]) -> None:
        """Exchange once with nothing lost, and call idle leases back for what is short."""
        asked = process.holder.ask(needs, ahead=False)
        if asked is None:
            return
        answers = self.exchange(asked)
        assert answers is not None
        process.folded(process.holder.apply(asked.number, answers))
        for name, epochs in self.limiter.short(asked.epoch, asked.reports, BOUNDS).items():
            for other in self.processes:
                if other.alive and other.holder.epoch in epochs and other.holder.give_back([name]):
                    self.pump(other, {})
                    self.pump(other, {})

    def recover_one(self, process: Process) -> None:
        opened: dict[str, dict[str, Held]] = {}
        for name, amounts in process.open.items():
            for account, amount in amounts.items():
                opened.setdefault(account, {})[name] = Held(amount, "t.a", 0)
        self.limiter.recover(process.holder.epoch, process.settled, opened)

    def resolve(self, name: str, held: Mapping[str, Held]) -> None:
        used = self.used.pop(name)
        amounts = self.running.pop(name)
        for account in amounts:
            self.spent[account] += used
        for process in self.processes:
            process.open.pop(name, None)
        self.limiter.resolve(name, dict.fromkeys(held, used))


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=soak(60, 2_000), stateful_step_count=50, deadline=None)
