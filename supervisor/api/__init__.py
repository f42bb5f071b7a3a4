"""The HTTP API of a run, on its control socket.

`server` serves and guards it, every other module has the handlers of one noun and ends with its
routes as a table. What Consul has stands under Consul's paths with Consul's JSON; what is ours is
under `/v1/meshrun/`.
"""
