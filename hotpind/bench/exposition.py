"""Reads the appliance's figures as it gives them to Prometheus (text format 0.0.4). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from hotpind.errors import HotpinError

Labels = tuple[tuple[str, str], ...]
"""Names and values, in order of the names."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: how many observations were at most so much, by upper bound, the infinite one last."""

    counts: Mapping[float, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """All observations."""
        return int(max(self.counts.values(), default=0))

    def since(self, earlier: Buckets) -> Buckets:
        """Return what was observed since an earlier reading; all of it when the appliance was started anew."""
        if earlier.count > self.count:
            return self
        return Buckets({bound: count - earlier.counts.get(bound, 0.0) for bound, count in self.counts.items()})

    def quantile(self, share: float) -> float | None:
        """Estimate a quantile (0 to 1) as Prometheus' histogram_quantile does: linearly within its bucket.

        None without observations; the highest finite bound when it lies beyond that.
        """
        if not self.count:
            return None
        rank, below, lower = share * self.count, 0.0, 0.0
        for bound in sorted(self.counts):
            here = self.counts[bound]
            if here >= rank:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * ((rank - below) / (here - below) if here > below else 1.0)
            below, lower = here, bound
        return lower


@dataclass(frozen=True, slots=True)
class Figures:
    """One reading."""

    values: Mapping[str, Mapping[Labels, float]]
    """Gauges and counters by name (counters with their "_total"), then by labels."""
    histograms: Mapping[str, Mapping[Labels, Buckets]]

    def value(self, name: str, **labels: str) -> float:
        """Return a gauge or counter; 0 when it is not there yet."""
        return self.values.get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return a gauge or counter by the value of one label, the others summed up."""
        found: dict[str, float] = {}
        for labels, number in self.values.get(name, {}).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + number
        return found

    def histogram(self, name: str, **labels: str) -> Buckets:
        """Return a histogram; an empty one when it is not there yet."""
        return self.histograms.get(name, {}).get(tuple(sorted(labels.items())), Buckets())


def read_figures(text: str) -> Figures:
    """Parse the text. Raises `HotpinError` when it is not in the format."""
    values: dict[str, dict[Labels, float]] = {}
    bounds: dict[str, dict[Labels, dict[float, float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = dict(sample.labels)
                if family.type == "histogram" and sample.name.endswith("_bucket"):
                    bound = float(labels.pop("le"))
                    key = tuple(sorted(labels.items()))
                    bounds.setdefault(family.name, {}).setdefault(key, {})[bound] = sample.value
                elif not sample.name.endswith("_created"):
                    values.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    except (ValueError, KeyError) as error:
        raise HotpinError(f"the appliance's figures are not in Prometheus' text format ({error}); is it of another "
                          "version?") from None
    return Figures(values, {name: {labels: Buckets(counts) for labels, counts in found.items()}
                            for name, found in bounds.items()})
