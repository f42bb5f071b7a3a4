"""The control plane and the commands.

A run is made in this order, each step handing values to the next:

    `cli.up` -> `launching` (forks the launcher, before anything else)
             -> `configuration` (a file as values, or every mistake in it)
             -> `preparation` (state folder, ports, root, `plan`; nothing is started yet)
             -> `supervise` (signals, `api`, exit code) -> `run`

- `run` has the decisions that concern more than one instance: who may start (`dependants`) and is
  due (`timetable`), who takes calls, how everything ends. What runs at the moment is in the
  `fleet`: each instance with its app, and its sidecar, whose workers `sidecars` has. Apps and
  workers alike are kept by a `runner` each.
- `reloading` makes a new plan while a run goes on (a changed file, another number of instances),
  `difference` says what that means for each instance, `rollout` does it without a failed call.
- `watching` hears of changed files and has apps restarted for them, by `reloading` as well.
- `runner` drives one state machine, `lifecycle`, which is a pure table: events go in, actions come
  out. What is particular to an app or a worker is in its body (`bodies`), which asks the launcher
  for processes through `launching`, in the words of `spawning`. How an app is, `probes` find out;
  `hooks` run beside it.
- `launcher` is another process: it forks (`child`), reaps, and ends the run if the supervisor dies.
  `sessions` finds and ends what belongs to one instance, `leftovers` what a killed run has left;
  `blocking` says what keeps a run from ending.
- What an app may use is set by `confinement`; `machine` knows users and rights.
- `controlplane` has a channel to every worker of a sidecar: snapshots and leaves (`ca`) go out,
  acknowledgements and denials come back. Who may call whom is in `intention_book`.
- `reporter` turns what happens into the `timeline` and the `journal`; apps write into the `logs`.
- `statedir`, `database` and `runfile` are what is on disk; `processes`, `prctl`, `cgroup`
  and `oom` what the kernel is asked.
- `api` answers on the control socket; `cli` asks there, or reads the folder where nothing runs.

Calls go down this list. What happens comes up through callables and small protocols
(`controlplane.Observer`, `runner.Body`); `bell` wakes whoever waits for something to become true.
"""
