"""HTTP in the sidecar, for services whose protocol is http, http2 or grpc.

Pure: `heads` are the vocabulary, `semantics` what holds for them in every version; `target`
normalises paths and hosts; `head1` with its `fields1` and `body1` read and write HTTP/1, with what
`known_lines` keeps of lines that come again; `fields2` does so with the heads of HTTP/2, which
`hpack2` packs and unpacks, `frames2` looks at its frames, with a `patience` that ends, and
`machine2` has their states; `answers` are the sidecar's own responses, `own_fields` what it adds to
those of others and takes out of them; `retries` says what may be sent again, `circuit` how much may
be under way, `split` which of several services a request goes to.

Drivers, on the loop: a `link` is a connection, whatever carries it; `server1` and `client1` (each
a `writer1`), `server2` and `client2` (each a `connection2` of many a `stream2`) speak HTTP over
links, in the words of `exchange`; a `session` is a connection that requests come over, a `relay` an
exchange that passes on. `inbound` judges each request before the app hears of it; `outbound` finds
a `route` for each request of the app, to an instance, and a `line` that goes there; `deadlines` end
those that are late.
"""
