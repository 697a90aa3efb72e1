"""How long something will take: the plan of a run after its first steps, and lines on the way where there is no bar."""

import time

from tqdm import tqdm

PLANNED_AFTER, WORTH_A_PLAN = 6, 30
"""Steps after which it is said how long the others will take, and how many there must be for that"""
SLOW_S = 20.0
"""Of slow steps it is said as soon as so much time has passed, however many there are"""
FIRST_LINE_S, EVERY_S = 10.0, 30.0
"""Where there is no bar: time after which it is first said how far something is, and then again"""


class Plan:
    """Of a run: how long it will take, told once this is known."""

    def __init__(self, num_steps: int, now: float):
        """
        Args:
            num_steps: that are to be done. now: time at which they begin, s.
        """
        self.num_steps = num_steps
        self.begun = self.first = now
        self.told = False

    def after(self, steps: int, now: float) -> str | None:
        """What is to be said after so many steps."""
        left = self.num_steps - steps
        if steps == 1:  # which takes longer than others
            self.first = now
            seconds = now - self.begun
            if seconds < SLOW_S or not left:
                return None
            return f"planned     {left} more steps; the first one took {seconds:.0f} s"
        if self.told or steps < 1:
            return None
        seconds = (now - self.first) / (steps - 1)
        usual = steps == PLANNED_AFTER and self.num_steps >= WORTH_A_PLAN
        slow = min(now - self.first, seconds * left) >= SLOW_S
        if not (usual or slow):
            return None
        self.told = True
        return (
            f"planned     about {clock(seconds * left)} for {left} more steps of {seconds:.2f} s; evaluations "
            "and the export come on top"
        )


class Progress:
    """A bar, where stderr is a terminal; elsewhere a line on stdout now and then, for logs."""

    def __init__(self, total: int, name: str, unit: str, done: str, shown: bool):
        """
        Args:
            done: what is done with things of `unit`, for the lines. shown: whether anything is.
        """
        self.total, self.name, self.unit, self.done = total, name, unit, done
        self.bar = tqdm(total=total, unit=f" {unit}", desc=name, disable=None if shown else True)
        self.lines = shown and bool(self.bar.disable)
        self.num = 0
        self.begun = time.monotonic()
        self.due = self.begun + FIRST_LINE_S

    def update(self, num: int) -> None:
        """So many more are done."""
        self.bar.update(num)
        self.num += num
        now = time.monotonic()
        if not self.lines or now < self.due or not 0 < self.num < self.total:
            return
        self.due = now + EVERY_S
        left = (now - self.begun) / self.num * (self.total - self.num)
        print(
            f"{self.name:<11} {self.num:,} of {self.total:,} {self.unit} {self.done}, about {clock(left)} left",
            flush=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
