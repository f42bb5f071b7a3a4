"""From a mesh.toml or a Procfile to values, with every mistake and its place.

`meshfile` finds and reads a file and is what others call; `model` is what it gives them. In
between, each in its own pure module: `toml_positions` (where everything stands), `tables` (a table
that notes what was asked of it), `values` (one kind of value each), `sections` (the tables of the
schema; those of their own are `upstreams`, `probes`, `depends_on` and more), `references` (what
names what), `procfile`, `dotenv` and `interpolation`.
"""
