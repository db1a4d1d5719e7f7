"""Steps that pass, fail, or cannot be run on this machine: that is said, and counted, and never taken for a pass."""

import contextlib
import subprocess
import sys
import time


class CannotRun(Exception):
    """This machine lacks what the step needs; the text says what."""


class Steps:
    def __init__(self):
        self.passed, self.failed, self.not_run = [], [], []

    @contextlib.contextmanager
    def step(self, name):
        """Within it, `figures.append(...)` for what was measured."""
        began, figures = time.monotonic(), []
        try:
            yield figures
        except CannotRun as reason:
            self.not_run.append(name)
            self._say("NOT RUN", name, began, [str(reason)])
        except (AssertionError, subprocess.SubprocessError, OSError, TimeoutError) as error:
            self.failed.append(name)
            self._say("FAILED ", name, began, [f"{type(error).__name__}: {error}"])
        else:
            self.passed.append(name)
            self._say("ok     ", name, began, figures)

    def walk(self, part, order, trial):
        """Each step takes up where the one before it ended: behind one that failed none can be run."""
        broken = None
        for name in order:
            failed = len(self.failed)
            with self.step(f"{part}: {name.replace('_', ' ')}") as told:
                if broken:
                    raise CannotRun(f"the step before it failed: {broken}")
                told += getattr(trial, name)() or []
            if len(self.failed) > failed:
                print(trial.log(), file=sys.stderr)
                broken = name

    def cannot(self, part, order, reason):
        for name in order:
            with self.step(f"{part}: {name.replace('_', ' ')}"):
                raise CannotRun(reason)

    @staticmethod
    def _say(how, name, began, figures):
        told = "; ".join(figures)
        print(f"{how}  {name} ({time.monotonic() - began:.1f} s){': ' if told else ''}{told}", flush=True)

    def end(self):
        print(f"packaging: {len(self.passed)} passed, {len(self.failed)} failed, {len(self.not_run)} not run")
        for name in self.failed:
            print(f"  FAILED   {name}")
        for name in self.not_run:
            print(f"  NOT RUN  {name}")
        return 1 if self.failed or not self.passed else 0


def run(*command, check=True, seconds=120, **more):
    """What it printed; what it said stands in the error."""
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True, timeout=seconds, check=False, **more)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(str(word) for word in command)}: exit {done.returncode}: {done.stdout}{done.stderr}".strip())
    return done.stdout if check else done


def until(what, seconds, look):
    """The first true thing that `look` gives."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.1)


def note(text):
    print(f"packaging: {text}", file=sys.stderr, flush=True)
