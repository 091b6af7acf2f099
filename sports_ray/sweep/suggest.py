"""Settings from what was found so far, by optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

No study is kept: each suggestion is a function of the sweep's seed, the trial's name and the trials that have ended. What is
suggested is recorded, and so the state of the search survives a restart without a database or a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sports_ray.errors import ConfigError
from sports_ray.sweep.space import Parameter, Params, share

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def check_installed() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--search optuna", got="no optuna", want="the extra [tune]", cure="pip install 'sports-ray[tune]'"
        ) from error


class Told(NamedTuple):
    """A trial that has ended."""

    params: Params
    score: float
    """Higher is better; minus infinity: it failed."""
    stopped_at: int
    """The epoch at which it was stopped; 0: it came to its end."""


def suggest(space: Sequence[Parameter], seed: int, trial: str, told: Sequence[Told]) -> Params:
    """Settings for a trial, from what came of others of its backbone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {one.key: _distribution(one) for one in space}
    sampler = optuna.samplers.TPESampler(seed=int(share(seed, trial) * 2**31))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params, score, stopped_at in told:
        known = {one.key: _inside(one, params[one.key]) for one in space if one.key in params}
        outcome: dict[str, Any] = {"state": optuna.trial.TrialState.FAIL}
        if stopped_at:
            outcome = {"state": optuna.trial.TrialState.PRUNED, "intermediate_values": {stopped_at: score}}
        elif math.isfinite(score):
            outcome = {"state": optuna.trial.TrialState.COMPLETE, "value": score}
        distributions = {key: kinds[key] for key in known}
        study.add_trial(optuna.trial.create_trial(params=known, distributions=distributions, **outcome))
    asked = study.ask(kinds)
    return {one.key: _outside(one, asked.params[one.key]) for one in space}


def _distribution(one: Parameter) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.values:
        return CategoricalDistribution([json.dumps(value) for value in one.values])
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _inside(one: Parameter, value: Any) -> Any:
    return json.dumps(value) if one.values else value


def _outside(one: Parameter, value: Any) -> Any:
    """As `Parameter.at` would give it: alternatives as they are, numbers with four digits."""
    if one.values:
        return json.loads(value)
    return value if one.whole else min(one.high, max(one.low, float(f"{value:.4g}")))
