"""What Prometheus reads of a service."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ...core.errors import SpecError

if TYPE_CHECKING:
    from .served_model import ServedModel


class ServiceCollector:
    """Reads the state of served models whenever Prometheus asks; nothing is computed before.

    Register it where your service has its metrics already: ``registry.register(ServiceCollector(model))``.
    """

    def __init__(self, *models: "ServedModel") -> None:
        self._models = models
        self._families = import_prometheus().metrics_core

    def collect(self) -> Iterable[Any]:
        """Returns the families of metrics; see `prometheus_client.registry.Collector`."""
        return [*self._read_latencies(), *self._read_counts(), *self._read_gauges(), *self._read_drifts()]

    def _read_latencies(self) -> list[Any]:
        histogram = self._families.HistogramMetricFamily
        service = histogram(
            "trimtab_service_seconds", "Time of a call in the runtime, by policy.", labels=("model", "policy")
        )
        answer = histogram(
            "trimtab_answer_seconds", "Time from a call's arrival to its answer, waiting included.", labels=("model",)
        )
        for model in self._models:
            for name, found in zip(model.policies, model.recorder.read_services(), strict=True):
                service.add_metric((model.name, name), _buckets(found), found.sum_ns / 1e9)
            found = model.recorder.read_answers()
            answer.add_metric((model.name,), _buckets(found), found.sum_ns / 1e9)
        return [service, answer]

    def _read_counts(self) -> list[Any]:
        found: list[tuple[str, str, Callable[[ServedModel], int]]] = [
            ("trimtab_failures", "Calls in which the runtime failed.", lambda m: m.recorder.n_failed),
            ("trimtab_shed", "Calls that were turned away because of the load.", lambda m: m.n_shed),
            ("trimtab_level_changes", "Changes from policy to policy.", lambda m: m.n_level_changes),
            ("trimtab_shadowed", "Samples of calls that the original ran, too.", lambda m: m.n_shadowed),
            ("trimtab_shadows_dropped", "Calls that the original had no time for.", lambda m: m.n_shadows_dropped),
            ("trimtab_drifts", "Signals of drift.", lambda m: m.watcher.n_drifts),
        ]
        families = []
        for name, words, read in found:
            family = self._families.CounterMetricFamily(name, words, labels=("model",))
            for model in self._models:
                family.add_metric((model.name,), read(model))
            families.append(family)
        return families

    def _read_gauges(self) -> list[Any]:
        gauge = self._families.GaugeMetricFamily
        level = gauge("trimtab_level", "The policy in use; 0 is the most faithful.", labels=("model",))
        waiting = gauge("trimtab_waiting", "Calls that wait for their turn.", labels=("model",))
        slowdown = gauge(
            "trimtab_slowdown", "Time of the yardstick at loading over that of the promise.", labels=("model",)
        )
        limit = gauge("trimtab_latency_limit_seconds", "The longest median in the band.", labels=("model", "policy"))
        for model in self._models:
            level.add_metric((model.name,), model.level)
            waiting.add_metric((model.name,), model.n_waiting)
            if model.watcher.watches.slowdown is not None:
                slowdown.add_metric((model.name,), model.watcher.watches.slowdown)
            for watch in model.watcher.watches.latency:
                if watch is not None:
                    limit.add_metric((model.name, watch.policy), watch.limit_s)
        return [level, waiting, slowdown, limit]

    def _read_drifts(self) -> list[Any]:
        gauge = self._families.GaugeMetricFamily
        drift = gauge("trimtab_drift", "1 while a signal is out of its band.", labels=("model", "signal", "policy"))
        stability = gauge(
            "trimtab_input_stability_index",
            "Population stability index of a feature in the last window.",
            labels=("model", "input", "feature"),
        )
        agreement = gauge(
            "trimtab_agreement", "Share of agreement with the original in the last window.", labels=("model", "policy")
        )
        for model in self._models:
            watches = model.watcher.watches
            for signal, policy, is_drifting in watches.list_drifting():
                drift.add_metric((model.name, signal, policy), float(is_drifting))
            for (name, feature), index in dict(watches.inputs.stability if watches.inputs else {}).items():
                stability.add_metric((model.name, name, feature), index)
            for watch in watches.agreement:
                if watch is not None:
                    agreement.add_metric((model.name, watch.policy), watch.rate)
        return [drift, stability, agreement]


def import_prometheus() -> Any:
    """Returns the module ``prometheus_client``.

    Raises:
        SpecError: it is not installed.
    """
    try:
        import prometheus_client
        import prometheus_client.metrics_core
    except ImportError as error:
        raise SpecError("prometheus-client is not installed; pip install 'trimtab[serve]'") from error
    return prometheus_client


def _buckets(histogram: Any) -> list[tuple[str, float]]:
    floats = import_prometheus().utils.floatToGoString
    return [(floats(bound_s), count) for bound_s, count in histogram.cumulate()]
