"""The sidecar: one process beside each instance of an app.

`sidecar` is the entry point, called in a fork of the launcher with a channel and bound listeners.
It joins the rest, and everything happens on one asyncio loop, which waits in the `poller`:

    control plane <-> `channel` <-> `sidecar` -> `identity`, `inbound`, `outbound`
    app            -> `listener` -> `outbound` -> `splice` -> `tunnel` or `direct` -> `pump` -> peer
    peer           -> `listener` -> `inbound` -> `pump` -> `tunnel` or `direct` -> `splice` -> app

- `messages` is all that the control plane and a sidecar say to each other. A `Snapshot` is what a
  sidecar must know, whole; it is obeyed at once and acknowledged.
- `identity` holds the leaf and the TLS contexts made of it (`leaf`, `tls`), and renews them.
- `outbound` stands behind an upstream's port, with the connections of the app; `outbound_tunnels`
  is the way to the instances of a service: endpoint chosen (`balance`), an idle tunnel taken from
  the `pool`, or else dialled (`connector`: `dial`, `handshake`, its identity compared), or the
  connection parked.
- `inbound` stands in front of the app: `handshake`, peer checked (`svid`, `spiffe`); then for each
  stream that `inbound_tunnels` takes, or for a peer without tunnels, the `gate` asked about the
  `caller` (`intentions`, over `permissions` and `regex`), and only then the app dialled (`dial`,
  `callee`).
  What has gone when an instance is to be stopped, `drain` says.
- `splice` moves the bytes of the app; each of its two directions is in a state of `flow`. `pump`
  moves those of the peer through TLS. Between them stands a carrier, whose rider a splice is:
  `tunnel` carries one stream after another over one connection, in the frames of `framing`
  (docs/tunnel.md), and `direct` just one.
- `http` takes the place of splices where requests are understood: it rides on the same carriers,
  asks the same gate about each request, and finds instances the same way.
- `ledger` counts what is over, and tells of it where there is an access log or a tap.
- `idleness` cuts connections on which nothing moves, `memory` gives back what many have left,
  `backoff` says how long to wait before the next try.
- `poller` and `sockets` are the descriptors below all this, `tasks` the only place that makes
  tasks, `fanout` what is done to many connections, `reports` what is told upwards, without letting
  a flood through.

Calls go from the top of this list to the bottom; what happens comes back through callables that
were handed down. A sidecar speaks to its channel, its app and its peers, and to nothing else.

`meshrun.supervisor` shares `messages`, `channel`, `intentions` and what they use, `spiffe`, `svid`,
`leaf`, `tasks`, `errors`, and of `http` what is pure; nothing here imports it. Clock and randomness
are arguments wherever they decide.
"""
