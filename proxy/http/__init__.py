"""HTTP in the sidecar, for services whose protocol is http, http2 or grpc.

Pure: `heads` are the vocabulary; `target` normalises paths and hosts; `head1` and `body1` read and
write HTTP/1, with what `known_lines` keeps of lines that come again; `answers` are the sidecar's
own responses.

Drivers, on the loop: a `link` is a connection, whatever carries it; `server1`, `client1`, `server2`
and `client2` speak HTTP over links, in the words of `exchange`; `inbound` judges each request
before the app hears of it, `outbound` chooses an instance for each request of the app.
"""
