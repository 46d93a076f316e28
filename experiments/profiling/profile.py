"""``trimtab profile``: what a device can do, a kernel table that knows what policies cost, and the proof of it."""

import datetime
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...compressors.edges import find_edges
from ...core.cache import cache_folder
from ...core.errors import MeasurementError, SpecError
from ...evaluators.accuracy import take_batch
from ...evaluators.device import KernelDevice, find_address
from ...evaluators.kernel_timing import find_usual_s
from ...evaluators.latency import TimingSettings
from ...evaluators.microbenchmarks import MicroSettings, measure_device
from ...evaluators.quietness import NullTest, require_quiet, run_null_test
from ...hw_profiles.device_profile import DeviceProfile
from ...hw_profiles.kernels.kernel_table import KernelTable
from ...hw_profiles.kernels.shipped import open_table, user_table_path
from ...hw_profiles.kernels.table_file import update_table
from ...hw_profiles.kernels.table_identity import TableIdentity
from ...hw_profiles.prices.price_list import build_pricer
from ...hw_profiles.prices.pricing import NOISE, GraphPricer
from ...spaces.policy import Policy
from ..preparation import Preparation, prepare
from ..run_folder import RunFolder
from ..spec import Spec
from ..spec_file import load_spec
from .accuracy import PriceAccuracy, compare_prices
from .collect import Collector, PolicyRun
from .device_profiles import find_profile, save_profile
from .learn import Learner, LearningPlan, add_run, graph_key
from .scatter import check_matplotlib, draw_scatter
from .surrogate import Effort, build_surrogate
from .teach import time_random_networks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileResult:
    """What was learnt of one model on one device, and how well it predicts."""

    #: the folder with profile.json and scatter.png
    run: Path
    model: str
    device: DeviceProfile
    #: the user's table, which every measurement went into
    table: Path
    #: kernels that the measured policies are made of, and how many of them the table did not hold before
    n_kernels: int
    n_new_kernels: int
    #: prices of policies that nothing was fitted on against their measurements
    accuracy: PriceAccuracy
    #: the same for the surrogate, which prices a million policies a second
    surrogate_accuracy: PriceAccuracy
    #: median of the original, in seconds, on the machine as it was when its table began
    original_s: float
    null_test: NullTest
    #: seconds from the start to the end
    took_s: float

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "run": str(self.run),
            "model": self.model,
            "device": self.device.to_json(),
            "table": str(self.table),
            "kernels": self.n_kernels,
            "new_kernels": self.n_new_kernels,
            "accuracy": self.accuracy.to_json(),
            "surrogate_accuracy": self.surrogate_accuracy.to_json(),
            "original_s": self.original_s,
            "null_test": {
                "deviation": self.null_test.deviation,
                "low": self.null_test.low,
                "high": self.null_test.high,
                "verdict": self.null_test.verdict(),
            },
            "took_s": self.took_s,
        }


#: told what is being done: (what, done, of how many); 0 of 0 where there is nothing to count
Progress = Callable[[str, int, int], None]


def _stay_silent(what: str, done: int, of: int) -> None:
    """Tells nobody."""


def profile(
    specs: Sequence[str | Path | dict[str, Any] | Spec] | str | Path | dict[str, Any] | Spec,
    *,
    runs: str | Path = "runs",
    plan: LearningPlan | None = None,
    progress: Progress = _stay_silent,
    again: bool = False,
) -> list[ProfileResult]:
    """Profiles the devices of some specs, for their models.

    Everything measured goes into the user's kernel table of the device at once, where later searches find it.

    Args:
        specs: one spec or several: a YAML file, a recipe's name, a mapping or a `Spec`.
        runs: the folder in which each spec's own folder is made.
        plan: how much to measure.
        progress: told what is being done.
        again: measure the device anew even where a profile of it is at hand.

    Raises:
        SpecError: a spec does not fit, or its runtime does not tell its kernels; nothing was measured.
        MeasurementError: the machine is too unquiet; the message has the figures.
    """
    check_matplotlib()
    wanted = [specs] if isinstance(specs, str | Path | dict | Spec) else list(specs)
    resolved = [load_spec(spec) for spec in wanted]
    if not resolved:
        raise SpecError("profile needs at least one spec")
    return [_Session(spec, Path(runs), plan or LearningPlan(), progress).run(again=again) for spec in resolved]


class _Session:
    """One model on one device."""

    def __init__(self, spec: Spec, runs: Path, plan: LearningPlan, progress: Progress) -> None:
        self._started_s = time.monotonic()
        self._plan = plan
        self._progress = progress
        progress("preparing the model", 0, 0)
        # what pays here is what is asked: an old verdict must not narrow the answer
        self._preparation = prepare(spec.model_copy(update={"profile": "none"}))
        device = self._preparation.device
        if not isinstance(device, KernelDevice):
            raise SpecError(
                f"runtime '{find_address(device).runtime}' does not tell its kernels, so no profile can be made of it; "
                f"onnxruntime and openvino do"
            )
        self._device: KernelDevice = device
        self._identity = TableIdentity.of(device.identify())
        self._edges = find_edges(self._preparation.model, self._preparation.space.groups)
        self._folder = RunFolder.create(runs, f"{spec.name}-profile")
        self._folder.write_spec(spec)
        self._model = self._preparation.table_name
        self._source = f"profile {datetime.date.today().isoformat()} {self._folder.path.name}"
        self._table_path = user_table_path(self._identity, cache_folder())

    def run(self, *, again: bool) -> ProfileResult:
        """Measures, cross-validates, writes."""
        with self._folder.logging():
            collector = self._collector(self._preparation)
            self._progress("checking that the machine is quiet", 0, 0)
            null_test = run_null_test(self._device, collector.build_original(), collector.batch, self._null_timing())
            noise = float(np.hypot(NOISE, require_quiet(null_test, self._plan.quietness)))
            device = self._profile_device(again=again)
            before = open_table(self._identity, cache_folder())
            self._teach()
            collector.usual_s = find_usual_s(self._device, collector.build_original(), before, model=self._model)
            learner = Learner(collector, self._edges, self._model, self._plan, keep=self._keep)
            designed = learner.measure_designed(before, report=self._report("designed policies"))
            tested = learner.measure_test(designed, report=self._report("test policies"))
            if not designed or not tested:
                raise MeasurementError("no policy could be measured; see log.txt in the run's folder")
            # an earlier profile may have measured the same ones, and nothing may be fitted on what it is tested on
            asked = {graph_key(run.counts) for run in tested}
            known = open_table(self._identity, cache_folder()).without_graphs(lambda graph: graph.counts in asked)
            pricer = build_pricer(known, model=self._model, noise=noise)
            accuracy = self._validate(pricer, tested)
            surrogate_accuracy = self._validate_surrogate(collector, pricer, designed, tested)
            for run in tested:
                self._keep(run, len(designed) + tested.index(run))
            kernels = {kernel for run in (*designed, *tested) for kernel in run.counts}
            result = ProfileResult(
                run=self._folder.path,
                model=self._model,
                device=device,
                table=self._table_path,
                n_kernels=len(kernels),
                n_new_kernels=sum(before.latency(kernel) is None for kernel in kernels),
                accuracy=accuracy,
                surrogate_accuracy=surrogate_accuracy,
                original_s=designed[0].latency.reference_s or 0.0,
                null_test=null_test,
                took_s=time.monotonic() - self._started_s,
            )
            self._folder.write_json(self._folder.path / "profile.json", result.to_json())
            return result

    def _collector(self, preparation: Preparation) -> Collector:
        batch = take_batch(preparation.dataset.validation, 0, self._device.target.batch_size)
        return Collector(self._device, preparation.pipeline, preparation.space, batch, self._plan.timing)

    def _null_timing(self) -> TimingSettings:
        return replace(self._plan.timing, min_runs=20, min_time_s=min(0.1, self._plan.timing.min_time_s))

    def _profile_device(self, *, again: bool) -> DeviceProfile:
        identity = self._device.identify()
        known = None if again else find_profile(identity).profile
        if known is not None:
            return known
        self._progress("measuring the device", 0, 0)
        measured = measure_device(self._device.target, MicroSettings(quietness=self._plan.quietness))
        save_profile(measured)
        return measured

    def _teach(self) -> None:
        """Measures random networks into the user's table, where they are asked for."""
        report = self._report("random networks")
        plan = self._plan
        for name, timings in time_random_networks(self._device, plan.n_networks, seed=plan.seed, report=report):
            self._update(partial(KernelTable.add, timings=timings, source=f"{self._source} {name}"))

    def _report(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self._progress(f"measuring {what}", done, of)

    def _keep(self, run: PolicyRun, position: int) -> None:
        """Puts what was measured into the user's table at once."""
        self._update(lambda table: add_run(table, run, model=self._model, source=f"{self._source} #{position}"))

    def _update(self, change: Callable[[KernelTable], None]) -> None:
        update_table(self._table_path, change, identity=self._identity)

    def _validate(self, pricer: GraphPricer, tested: Sequence[PolicyRun]) -> PriceAccuracy:
        """Prices policies that nothing was fitted on, compares, and draws the comparison."""
        self._progress("cross-validating", 0, 0)
        prices = [pricer.price(run.counts, model=self._model) for run in tested]
        priced_s, errors_s = np.array([p.seconds for p in prices]), np.array([p.standard_error_s for p in prices])
        measured_s = np.array([run.latency.median_s for run in tested])
        draw_scatter(self._folder.path / "scatter.png", (priced_s, errors_s, measured_s), title=self._folder.path.name)
        return compare_prices(priced_s, measured_s, errors_s)

    def _validate_surrogate(
        self,
        collector: Collector,
        pricer: GraphPricer,
        designed: Sequence[PolicyRun],
        tested: Sequence[PolicyRun],
    ) -> PriceAccuracy:
        """Fits a surrogate to prices of designed policies and to what was measured, and compares in the same way."""
        self._progress("fitting the surrogate", 0, 0)
        started_s = time.monotonic()
        collector.lower(tested[0].policy)
        lowering_s = time.monotonic() - started_s
        n_graphs = len(
            {(run.policy.graph.fusion, run.policy.graph.quantized_ops, run.policy.graph.precision) for run in tested}
        )
        n_prices = int(self._plan.max_surrogate_s / (n_graphs * lowering_s))

        def level2(policies: Sequence[Policy]) -> list[tuple[float, float]]:
            prices = [pricer.price(collector.lower(policy), model=self._model) for policy in policies]
            return [(price.seconds, price.standard_error_s) for price in prices]

        space = collector.space
        effort = Effort(n_first=min(64, max(n_prices, 16)), n_most=min(max(n_prices, 16), 1024))
        surrogate = build_surrogate(space, self._edges, level2, seed=self._plan.seed, effort=effort)
        surrogate.update(
            [run.policy for run in designed], [(run.latency.median_s, run.latency.error_s) for run in designed]
        )
        vectors = np.array([space.encode(run.policy) for run in tested])
        measured_s = np.array([run.latency.median_s for run in tested])
        return compare_prices(surrogate.price(vectors), measured_s, surrogate.standard_error(vectors))
