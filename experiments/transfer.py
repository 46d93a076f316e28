"""A policy found for one device, priced anew and solved again for another; nothing is run there."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import SpecError
from ..evaluators.device import DEVICES
from ..search.knowledge import Knowledge
from ..search.solver.additive_cost import AdditiveCost
from ..search.solver.program import Bound, Program
from ..search.solver.solution import Limits
from ..search.solver.solve import solve
from ..spaces.fit_policy import fit_policy
from ..spaces.policy import Policy
from .finish import describe_policy
from .knowledge import gather_knowledge
from .policy_file import PolicyFile, load_policy
from .preparation import Preparation, prepare
from .spec import Spec, is_note
from .spec_file import load_spec

#: seconds that the solver may take for one setting of the graph-wide choices
_LIMITS = Limits(relative_gap=1e-3, time_limit_s=10.0)


@dataclass(frozen=True)
class Priced:
    """A policy on the new device, as its kernel table and its influences have it."""

    policy: PolicyFile
    #: latency as a multiple of the original's there; None where no table knows the model
    latency: float | None
    #: summed influence on the output
    influence: float


@dataclass(frozen=True)
class Transfer:
    """What becomes of a policy on another device."""

    #: the policy as it is, without what is not on offer there
    kept: Priced
    #: in words, what is not on offer there
    lost: tuple[str, ...]
    #: solved anew for the device: least latency, or size, at no more influence on the output than the given policy has
    solved: Priced

    def to_json(self) -> dict[str, Any]:
        """Returns the figures and the solved policy as JSON values."""
        return {
            "lost": list(self.lost),
            "kept": {"latency": self.kept.latency, "influence": self.kept.influence},
            "solved": {
                "latency": self.solved.latency,
                "influence": self.solved.influence,
                "policy": self.solved.policy.policy.to_json(),
            },
        }


def transfer(
    policy: str | Path, target: str | Path | dict[str, Any] | Spec, *, model: Any = None, data: Any = None
) -> Transfer:
    """Fits a policy to another device and solves for one that suits it better.

    Args:
        policy: a policy.json.
        target: a runtime's name (one thread, batch of one), or a spec or recipe for the other device, which also says
            what is on offer there.
        model: ``module:callable`` or object; None: the one that the policy was found for, by its name.
        data: likewise.

    Raises:
        SpecError: the policy cannot be read, or the target, model or data do not fit.
    """
    file = load_policy(policy)
    preparation = prepare(_spec_for(file, target, model, data))
    preparation, knowledge = gather_knowledge(preparation)
    fitted = fit_policy(preparation.space, file.policy, file.groups)
    kept = _price(preparation, knowledge, fitted.policy, name=str(policy))
    solved = min(
        [fitted.policy, *_solve(preparation, knowledge, fitted.policy)],
        key=lambda found: _cost(preparation, knowledge, found),
    )
    return Transfer(kept, fitted.lost, _price(preparation, knowledge, solved, name=str(policy)))


def _spec_for(file: PolicyFile, target: str | Path | dict[str, Any] | Spec, model: Any, data: Any) -> Spec:
    found_for = {"model": model or file.origin.get("model"), "data": data or file.origin.get("data")}
    if isinstance(target, str) and target in DEVICES:
        missing = [name for name, value in found_for.items() if not value or is_note(value)]
        if missing:
            raise SpecError(f"the policy does not name its {' and '.join(missing)}; pass --{' and --'.join(missing)}")
        return load_spec({**found_for, "target": {"runtime": target}})
    spec = load_spec(target)
    given = {name: value for name, value in (("model", model), ("data", data)) if value is not None}
    return spec if not given else load_spec({**{n: getattr(spec, n) for n in spec.model_fields_set}, **given})


def _solve(preparation: Preparation, knowledge: Knowledge, policy: Policy) -> Iterable[Policy]:
    """Yields the policy of least cost in every setting that is priced."""
    space = preparation.space
    n_groups = len(space.groups)
    vector = space.encode(policy)
    influence = _influence(knowledge)
    bound = Bound("influence", (influence,), float(influence.value(vector[None])[0]))
    costs = knowledge.latency or (
        {tuple(map(int, vector[n_groups:])): knowledge.size_bytes} if knowledge.size_bytes is not None else {}
    )
    for setting, cost in costs.items():
        solution = solve(Program((cost,), (bound,)), _LIMITS)
        if solution.vector is not None:
            yield space.decode([*solution.vector, *setting])


def _influence(knowledge: Knowledge) -> AdditiveCost:
    return AdditiveCost(0.0, knowledge.influence)


def _cost(preparation: Preparation, knowledge: Knowledge, policy: Policy) -> tuple[float, float]:
    latency = _latency(preparation, knowledge, policy)
    size = 0.0
    if knowledge.size_bytes is not None:
        size = float(knowledge.size_bytes.value(preparation.space.encode(policy)[None])[0])
    return (np.inf if latency is None else latency, size)


def _latency(preparation: Preparation, knowledge: Knowledge, policy: Policy) -> float | None:
    vector = preparation.space.encode(policy)
    cost = knowledge.price(tuple(map(int, vector[len(preparation.space.groups) :])))
    return None if cost is None else float(cost.value(vector[None])[0])


def _price(preparation: Preparation, knowledge: Knowledge, policy: Policy, *, name: str) -> Priced:
    vector = preparation.space.encode(policy)
    described = describe_policy(preparation, policy, run=f"transfer of {name}")
    influence = float(_influence(knowledge).value(vector[None])[0])
    return Priced(described, _latency(preparation, knowledge, policy), influence)
