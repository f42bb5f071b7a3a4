"""Reproducible comparisons of meshrun with what people use today; `make bench` runs them all.

`results` is what every suite returns, by way of a `collection`; `report` and `charts` turn it into
docs/benchmarks.md (pure). The suite `proxies` measures the data plane: `workloads` loads pairs of
sidecars (`contenders`, from `peers/`) before one `backend`, in `rounds`; `usage` reads what they
cost. The suite `http` (`http_proxies`, `http_workloads`) does the same with pairs that decide about
each request by a `rule`. The suite `supervisors` (`supervision`) measures the process manager:
`managers/` run the same apps.
"""
