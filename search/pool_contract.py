"""What every `WorkerPool` must do; a new pool is tested by adding its factory to one list.

Each check takes a factory(bench_factory, limits) and an empty folder, and raises AssertionError with the sentence
that is broken. The pool of a check is closed by the check.
"""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..core.errors import DeviceLostError, MeasurementError, SpecError
from ..evaluators.measurement import Measurement
from .budget import Budget
from .goal import Goal
from .record import Status
from .testing import (
    CLEARLY,
    N_FIRST,
    N_SAMPLES,
    REFERENCE_S,
    FakeBenchFactory,
    fake_measurement,
    policy_of,
    small_space,
)
from .worker_pool import Job, Limits, Outcome, WorkerPool

PoolFactory = Callable[[FakeBenchFactory, Limits], WorkerPool]
PoolCheck = Callable[[PoolFactory, Path], None]

_SPACE = small_space()
#: long enough for a healthy fake on a busy machine, short enough to wait for a hanging one
_SHORT = Limits(timeout_s=1.0)
#: out of reach of some policies of `small_space`, so that there is one of each kind
_BUDGET = Budget(accuracy_drop=0.02, reference_s=REFERENCE_S)
_HARD_GOAL = Goal("latency", _BUDGET, best=0.7 * REFERENCE_S)
#: nobody is ruled out or stopped
_EASY_GOAL = Goal("latency", Budget(reference_s=REFERENCE_S))


def make_jobs(n: int, goal: Goal | None = None) -> list[Job]:
    """Returns jobs over different policies of `small_space`."""
    choices = [(i // 64 % 4, i // 16 % 4, i // 4 % 4, i % 4) for i in range(n)]
    return [Job(i, policy_of(_SPACE, chosen), seed=i, goal=goal) for i, chosen in enumerate(choices)]


def run_scripted(
    make_pool: PoolFactory, scratch: Path, behaviours: Iterable[str], goal: Goal | None = None
) -> dict[int, Outcome]:
    """Runs one job per behaviour (empty for a healthy one); returns the outcomes by id."""
    jobs = make_jobs(len(list(behaviours)), goal)
    script = {job.policy.id: behaviour for job, behaviour in zip(jobs, behaviours, strict=True) if behaviour}
    with closing(make_pool(FakeBenchFactory(_SPACE, script, str(scratch)), _SHORT)) as pool:
        outcomes = list(pool.run(jobs))
    _expect(len(outcomes) == len(jobs), f"{len(jobs)} jobs must end in {len(jobs)} outcomes, got {len(outcomes)}")
    return {outcome.id: outcome for outcome in outcomes}


def check_gives_one_outcome_per_job(make_pool: PoolFactory, scratch: Path) -> None:
    """Every job ends in one COMPLETE outcome with the whole measurement, batch after batch."""
    jobs = make_jobs(10)
    with closing(make_pool(FakeBenchFactory(_SPACE, {}, str(scratch)), Limits())) as pool:
        outcomes = [*pool.run(jobs[:6]), *pool.run(jobs[6:]), *pool.run([])]
    _expect(sorted(outcome.id for outcome in outcomes) == list(range(10)), "every job must end in one outcome")
    for outcome in outcomes:
        expected = fake_measurement(_SPACE, jobs[outcome.id].policy)
        _expect(outcome.measurement == expected, f"job {outcome.id} must carry its own measurement")
        _expect((outcome.status, outcome.error) == (Status.COMPLETE, ""), "a healthy job must be COMPLETE")
        _expect(outcome.cost_s > 0.0, "the cost must be counted")


def check_names_failures(make_pool: PoolFactory, scratch: Path) -> None:
    """Each kind of error ends in its status with its cause, and disturbs no other job."""
    behaviours = ["", "infeasible", "unstable", "bug", "transient", "device_refuses", "transient_once"]
    outcomes = run_scripted(make_pool, scratch, behaviours)
    expected = {
        0: (Status.COMPLETE, ""),
        1: (Status.INFEASIBLE, "the fake cannot build this policy"),
        2: (Status.FAILED, "the fake's numbers stay unstable"),
        3: (Status.FAILED, "ZeroDivisionError: the fake has a bug"),
        4: (Status.FAILED, "given up after 2 attempts: the fake lost its connection"),
        5: (Status.FAILED, "the fake's numbers stay unstable"),
        6: (Status.COMPLETE, ""),
    }
    found = {i: (outcome.status, outcome.error) for i, outcome in outcomes.items()}
    _expect(found == expected, f"failures must be named: expected {expected}, got {found}")


def check_stops_what_hangs(make_pool: PoolFactory, scratch: Path) -> None:
    """A job that hangs once is retried; one that hangs again fails on its time limit."""
    outcomes = run_scripted(make_pool, scratch, ["hang_once", "hang", ""])
    _expect(outcomes[0].status is Status.COMPLETE, f"a hang must cost one retry, got {outcomes[0]}")
    _expect(outcomes[1].status is Status.FAILED, "a job that always hangs must fail")
    _expect("time limit: not finished after 1 s" in outcomes[1].error, f"got {outcomes[1].error}")
    _expect(outcomes[2].status is Status.COMPLETE, "the other jobs must not suffer")


def check_scores_in_full_what_can_win(make_pool: PoolFactory, scratch: Path) -> None:
    """With a goal, what is clearly too bad is not measured, and what is ruled out is not scored in full."""
    jobs = make_jobs(96, _HARD_GOAL)
    with closing(make_pool(FakeBenchFactory(_SPACE, {}, str(scratch)), Limits())) as pool:
        outcomes = list(pool.run(jobs))
    found = {outcome.id: (outcome.status, outcome.measurement) for outcome in outcomes}
    expected = {job.id: _foretell(job) for job in jobs}
    _expect(len(outcomes) == len(jobs), f"{len(jobs)} jobs must end in {len(jobs)} outcomes, got {len(outcomes)}")
    for job_id, pair in expected.items():
        _expect(found[job_id] == pair, f"job {job_id} must come to {pair}, got {found[job_id]}")
    kinds = {(status, measurement.is_scored_on(N_SAMPLES)) for status, measurement in expected.values()}
    _expect(len(kinds) == 3, f"the check must meet the stopped, the ruled out and the winners, got {kinds}")
    reasons = {outcome.error for outcome in outcomes if outcome.status is Status.PRUNED}
    _expect(reasons == {"the fake's drop is clearly above 0.02"}, f"the reason must be named, got {reasons}")


def check_names_failures_of_the_rest(make_pool: PoolFactory, scratch: Path) -> None:
    """What goes wrong when the rest of the samples is scored ends as it would in the first part."""
    behaviours = ["", "rest_unstable", "rest_bug", "rest_transient", "rest_transient_once", "rest_hang_once"]
    outcomes = run_scripted(make_pool, scratch, behaviours, _EASY_GOAL)
    expected = {
        0: (Status.COMPLETE, ""),
        1: (Status.FAILED, "the fake's numbers stay unstable"),
        2: (Status.FAILED, "ZeroDivisionError: the fake has a bug"),
        3: (Status.FAILED, "given up after 2 attempts: the fake lost its connection"),
        4: (Status.COMPLETE, ""),
        5: (Status.COMPLETE, ""),
    }
    found = {i: (outcome.status, outcome.error) for i, outcome in outcomes.items()}
    _expect(found == expected, f"failures must be named: expected {expected}, got {found}")
    for i in (0, 4, 5):
        _expect(outcomes[i].measurement.is_scored_on(N_SAMPLES), f"job {i} must be scored in full after all")
    _expect(outcomes[1].measurement.latency is not None, "what was measured before must be kept")


def check_measures_alone(make_pool: PoolFactory, scratch: Path) -> None:
    """Nothing is compressed, scored or measured while something else is measured."""
    factory = FakeBenchFactory(_SPACE, {}, str(scratch))
    with closing(make_pool(factory, Limits())) as pool:
        for goal in (None, _EASY_GOAL):
            list(pool.run(make_jobs(8, goal)))
    intervals = sorted(factory.intervals(), key=lambda interval: interval[1])
    _expect(len(intervals) == 40, f"40 phases must have run, got {len(intervals)}")
    latest_score_s = latest_measure_s = 0.0
    for phase, start_s, end_s in intervals:
        if phase == "measure":
            _expect(start_s >= max(latest_score_s, latest_measure_s), "a measurement must run alone")
            latest_measure_s = max(latest_measure_s, end_s)
        else:
            _expect(start_s >= latest_measure_s, "nothing may be compressed during a measurement")
            latest_score_s = max(latest_score_s, end_s)


def check_reports_a_setup_that_fails(make_pool: PoolFactory, scratch: Path) -> None:
    """When the benches cannot be set up, the search stops with the reason."""
    factory = FakeBenchFactory(_SPACE, {}, str(scratch), setup_error="the fake model is missing")
    try:
        with closing(make_pool(factory, Limits())) as pool:
            list(pool.run(make_jobs(2)))
    except SpecError as error:
        _expect("the fake model is missing" in str(error), f"the reason must be named, got {error}")
        return
    raise AssertionError("a failing setup must raise SpecError")


def check_survives_an_interrupted_batch(make_pool: PoolFactory, scratch: Path) -> None:
    """A batch that is given up half way does not disturb the next one."""
    jobs = make_jobs(6)
    with closing(make_pool(FakeBenchFactory(_SPACE, {}, str(scratch)), Limits())) as pool:
        first = pool.run(jobs)
        next(first)
        first.close()  # type: ignore[attr-defined]
        outcomes = list(pool.run(jobs))
    _expect(sorted(outcome.id for outcome in outcomes) == list(range(6)), "the next batch must be complete")


def check_compares_artifacts_together(make_pool: PoolFactory, scratch: Path) -> None:
    """The original comes first, then the artifacts in their order, then the yardstick; a refusal names its cause."""
    jobs = make_jobs(3)
    factory = FakeBenchFactory(_SPACE, {jobs[2].policy.id: "device_refuses"}, str(scratch))
    artifacts = [FakeBenchFactory(_SPACE).workbench().compress_and_score(job.policy, seed=0)[0] for job in jobs]
    with closing(make_pool(factory, Limits())) as pool:
        latencies = pool.compare(artifacts[:2])
        expected = [fake_measurement(_SPACE, job.policy).latency for job in jobs[:2]]
        _expect(latencies[1:3] == expected, f"latencies must come in the artifacts' order, got {latencies}")
        _expect(len(latencies) == 4, "the original must come first and the yardstick last")
        try:
            pool.compare(artifacts)
        except MeasurementError as error:
            _expect("stay unstable" in str(error), f"the cause must be named, got {error}")
        else:
            raise AssertionError("a refused artifact must raise MeasurementError")
        _expect(len(list(pool.run(jobs[:2]))) == 2, "the pool must go on afterwards")


def check_closes_twice(make_pool: PoolFactory, scratch: Path) -> None:
    """Closing is idempotent, with and without a batch before it."""
    for n_jobs in (0, 1):
        pool = make_pool(FakeBenchFactory(_SPACE, {}, str(scratch)), Limits())
        list(pool.run(make_jobs(n_jobs)))
        pool.close()
        pool.close()


def check_ends_where_the_device_is_gone(make_pool: PoolFactory, scratch: Path) -> None:
    """A device that is gone ends the run; what was finished before has its outcome, the rest has none."""
    # the device takes one after the other, so what it finished before is known; workers may be at several
    for behaviour, goal, finished in (
        ("device_lost", None, {0}),
        ("rest_lost", _EASY_GOAL, set()),
        ("lost", None, set()),
    ):
        jobs = make_jobs(3, goal)
        factory = FakeBenchFactory(_SPACE, {jobs[1].policy.id: behaviour}, str(scratch))
        found: list[Outcome] = []
        with closing(make_pool(factory, Limits())) as pool:
            try:
                for outcome in pool.run(jobs):
                    found.append(outcome)
            except DeviceLostError as error:
                _expect("the fake's device is gone" in str(error), f"the cause must be named, got {error}")
            else:
                raise AssertionError(f"{behaviour} must end the run")
        statuses = {outcome.id: outcome.status for outcome in found}
        _expect(all(status is Status.COMPLETE for status in statuses.values()), f"nobody is to blame, got {statuses}")
        _expect(finished <= set(statuses) and 1 not in statuses, f"the job that met it must have none, got {statuses}")


#: kept by every pool
POOL_CHECKS: tuple[PoolCheck, ...] = (
    check_gives_one_outcome_per_job,
    check_names_failures,
    check_scores_in_full_what_can_win,
    check_names_failures_of_the_rest,
    check_stops_what_hangs,
    check_measures_alone,
    check_reports_a_setup_that_fails,
    check_survives_an_interrupted_batch,
    check_ends_where_the_device_is_gone,
    check_compares_artifacts_together,
    check_closes_twice,
)


def check_survives_crashes(make_pool: PoolFactory, scratch: Path) -> None:
    """A worker or device that dies costs its job one retry; a job that kills twice fails with the cause."""
    behaviours = ["crash_once", "crash", "device_crash_once", "device_crash", "", "rest_crash_once"]
    outcomes = run_scripted(make_pool, scratch, behaviours, _EASY_GOAL)
    for i in (0, 2, 4, 5):
        _expect(outcomes[i].status is Status.COMPLETE, f"job {i} must succeed on its retry, got {outcomes[i]}")
    for i, noun in ((1, "worker"), (3, "device")):
        _expect(outcomes[i].status is Status.FAILED, f"job {i} must fail")
        _expect(f"given up after 2 attempts: the {noun} died" in outcomes[i].error, f"got {outcomes[i].error}")


def check_stops_memory_hogs(make_pool: PoolFactory, scratch: Path) -> None:
    """A job that outgrows its memory is stopped before its time limit, with the numbers in the cause."""
    jobs = make_jobs(2)
    factory = FakeBenchFactory(_SPACE, {jobs[0].policy.id: "hog"}, str(scratch))
    limits = Limits(timeout_s=60.0, memory_bytes=480_000_000)
    with closing(make_pool(factory, limits)) as pool:
        outcomes = {outcome.id: outcome for outcome in pool.run(jobs)}
    _expect("memory limit: used" in outcomes[0].error, f"got {outcomes[0]}")
    _expect("MB of 480 MB" in outcomes[0].error, f"got {outcomes[0].error}")
    _expect(outcomes[1].status is Status.COMPLETE, "the other job must not suffer")


#: kept by every pool that runs jobs in other processes
PROCESS_POOL_CHECKS: tuple[PoolCheck, ...] = (check_survives_crashes, check_stops_memory_hogs)


def outcome_of_every_kind(make_pool: PoolFactory, scratch: Path) -> dict[int, tuple[Status, str, Measurement]]:
    """Returns what a mixed batch comes to, without costs: equal whatever the number of workers."""
    behaviours = ["", "infeasible", "bug", "transient_once", "", "rest_transient_once", "device_refuses", *[""] * 9]
    outcomes = run_scripted(make_pool, scratch, behaviours, _HARD_GOAL)
    return {i: (outcomes[i].status, outcomes[i].error, outcomes[i].measurement) for i in sorted(outcomes)}


def _foretell(job: Job) -> tuple[Status, Measurement]:
    """Returns what a healthy job under the hard goal must come to."""
    whole = fake_measurement(_SPACE, job.policy)
    if whole.accuracy is None or whole.accuracy_drop is None or whole.latency is None:
        raise AssertionError("the fake measures everything")
    first = replace(
        whole, accuracy=replace(whole.accuracy, n=N_FIRST), accuracy_drop=replace(whole.accuracy_drop, n=N_FIRST)
    )
    if whole.accuracy_drop.mean > 0.02 + CLEARLY:
        return Status.PRUNED, Measurement(first.accuracy, first.accuracy_drop, size_bytes=first.size_bytes)
    is_ruled_out = whole.latency.median_s > 0.7 * REFERENCE_S
    return Status.COMPLETE, first if is_ruled_out else whole


def _expect(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)
