"""How long to wait before the next start of something that keeps ending."""

__all__ = [
    "CRASH_LOOP_EXITS",
    "CRASH_LOOP_WINDOW_S",
    "FIRST_DELAY_S",
    "GOOD_RUN_S",
    "LONGEST_DELAY_S",
    "delay_s",
    "is_crash_loop",
]

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
GOOD_RUN_S = 30.0
# systemd's StartLimitBurst and StartLimitIntervalSec.
CRASH_LOOP_EXITS = 5
CRASH_LOOP_WINDOW_S = 10.0


def delay_s(attempt: int, jitter: float) -> float:
    """Return the wait before restart number `attempt` (0-based) in a row; the first is at once.

    `jitter` in [0, 1) shortens it by up to a fifth, so that what fell together does not rise
    together.
    """
    if attempt == 0:
        return 0.0
    # The exponent is bounded: 2.0 ** attempt overflows for something that fails for days.
    full = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 16))
    return full * (1.0 - 0.2 * jitter)


def is_crash_loop(exit_times: tuple[float, ...], now: float) -> bool:
    """Tell whether the exits up to `now` are too many in too short a time."""
    recent = [at for at in exit_times if now - at <= CRASH_LOOP_WINDOW_S]
    return len(recent) >= CRASH_LOOP_EXITS
