"""How an app is: asked at the app itself, or said by it.

`tally` counts answers and says what they mean (pure). `asking` asks again and again: over
`connections` (http, tcp), or by a command (`meshrun.supervisor.commands`). What an app says by
itself, a line of its log or a datagram to its `notify_socket` in the words of `notification`
(pure), is a `pulse`. Each of them feeds the state machine of the instance with events.
"""
