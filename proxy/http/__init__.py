"""HTTP in the sidecar, for services whose protocol is http, http2 or grpc.

Pure: `heads` are the vocabulary; `target` normalises paths and hosts; `head1` and `body1` read and
write HTTP/1; `fields2` does so with the heads of HTTP/2, and `frames2` looks at its frames, with a
`patience` that ends; `answers` are the sidecar's own responses.

Drivers, on the loop: a `link` is a connection, whatever carries it; `server1`, `client1`, `server2`
and `client2` (a `connection2` of many a `stream2`, both) speak HTTP over links, in the words of
`exchange`; `inbound` judges each request before the app hears of it, `outbound` chooses an instance
for each request of the app.
"""
