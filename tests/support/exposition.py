"""A strict reader of Prometheus' text format 0.0.4: what is not exactly as it says is an error.

Source: Prometheus docs, "Exposition formats", "Text-based format" and "Histograms and summaries";
that counters end in `_total` is of "Metric and label naming".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Family", "read"]

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass
class Family:
    """A metric: its type, what it means, and the values of its samples by name and labels."""

    name: str
    meaning: str
    kind: str
    samples: dict[Series, float] = field(default_factory=dict)

    def value(self, suffix: str = "", **labels: str) -> float:
        """Return the one sample that has these labels among others."""
        wanted = labels.items()
        found = [
            value
            for (name, have), value in self.samples.items()
            if name == self.name + suffix and wanted <= set(have)
        ]
        assert len(found) == 1, f"{len(found)} samples of {self.name}{suffix} with {labels}"
        return found[0]

    def total(self, **labels: str) -> float:
        """Return the sum of all samples that have these labels."""
        wanted = labels.items()
        return sum(value for (_, have), value in self.samples.items() if wanted <= set(have))


def read(page: str) -> dict[str, Family]:
    """Return every family by its name; fails for whatever a scraper might refuse."""
    assert page.endswith("\n"), "the last line must end with a line feed"
    families: dict[str, Family] = {}
    current: Family | None = None
    meaning: tuple[str, str] | None = None
    for line in page.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            name, _, text = line.removeprefix("# HELP ").partition(" ")
            meaning = (name, text)
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert NAME.fullmatch(name), name
            assert kind in ("counter", "gauge", "histogram"), kind
            assert meaning is not None, f"{name} has no HELP"
            assert meaning[0] == name, f"{name} has the HELP of {meaning[0]}"
            assert meaning[1], f"{name} says nothing"
            assert name not in families, f"{name} is there twice"
            assert kind != "counter" or name.endswith("_total"), f"{name} is a counter"
            current = families[name] = Family(name, meaning[1], kind)
            meaning = None
        else:
            assert current is not None, f"a sample before any TYPE: {line}"
            series, value = _sample(line)
            assert _belongs(series[0], current), f"{series[0]} stands within {current.name}"
            assert series not in current.samples, f"a series is there twice: {line}"
            assert current.kind == "gauge" or value >= 0, line
            current.samples[series] = value
    assert meaning is None, "a HELP without a TYPE"
    for family in families.values():
        if family.kind == "histogram":
            _check_histogram(family)
    return families


def _sample(line: str) -> tuple[Series, float]:
    found = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)", line)
    assert found, f"no sample: {line!r}"
    labels = dict(_labels(found[2] or ""))
    return (found[1], frozenset(labels.items())), float(found[3])


def _labels(text: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    at = 0
    while at < len(text):
        found = LABEL.match(text, at)
        assert found, f"no label: {text[at:]!r}"
        assert found[1] not in seen, f"a label is there twice: {found[1]}"
        seen.add(found[1])
        yield found[1], re.sub(r"\\[\\\"n]", lambda escape: ESCAPES[escape[0]], found[2])
        at = found.end()
        if at < len(text):
            assert text[at] == ",", f"no comma: {text[at:]!r}"
            at += 1
            assert at < len(text), "a comma at the end"


def _belongs(name: str, family: Family) -> bool:
    if family.kind == "histogram":
        return name in [family.name + part for part in HISTOGRAM_PARTS]
    return name == family.name


def _check_histogram(family: Family) -> None:
    buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
    others: dict[str, Mapping[frozenset[tuple[str, str]], float]] = {}
    for (name, labels), value in family.samples.items():
        if name == f"{family.name}_bucket":
            bound = float(dict(labels)["le"])
            rest = frozenset(pair for pair in labels if pair[0] != "le")
            buckets.setdefault(rest, []).append((bound, value))
    for part in ("_sum", "_count"):
        others[part] = {
            labels: value
            for (name, labels), value in family.samples.items()
            if name == family.name + part
        }
        assert set(others[part]) == set(buckets), f"{family.name}{part} of other series"
    for labels, found in buckets.items():
        assert found == sorted(found), "buckets out of order"
        counts = [count for _, count in found]
        assert counts == sorted(counts), "a bucket has less than one below it"
        assert found[-1][0] == float("inf"), "no bucket for the rest"
        assert counts[-1] == others["_count"][labels], "not every sample is in a bucket"
