"""Files that apps want watched: what of the file system is looked at, and what follows a change.

`scope` says which files count and `burst` which changes are one (both pure); `inotify` is the
kernel's side, `trees` keeps its watches where the folders are, `watcher` does what an app's `watch`
says.

Not by the library watchfiles: it asks for news every 50 ms, which is 20 wake-ups a second of a
process that has nothing to do, and with a longer step a change is heard of as much later. It knows
no folder that it shall not enter, so one node_modules can use up the kernel's watches; it goes
where symbolic links lead; and a single name that is not UTF-8 ends it. Here the event loop sleeps
until the kernel says that something has changed.
"""
