"""Reproducible comparisons of meshrun with what people use today; `make bench` runs them all.

`results` is what every suite returns, `report` and `charts` turn it into docs/benchmarks.md (pure).
The suite `proxies` measures the data plane: `workloads` loads pairs of sidecars from `peers/`
before one `backend`; `usage` reads what they cost. The suite `supervisors` (`supervision`) measures
the process manager: `managers/` run the same apps.
"""
