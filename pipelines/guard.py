"""Run a command; end it, and all that it started, when whoever wants its result asks for that or is gone.

`python guard.py COMMAND …` runs until the command ends, or until standard input closes: that its other end is
closed, however its holder ended, is the one sign that a SIGKILL cannot suppress. A signal to DVC alone would
leave the stage's process running; the command therefore gets a process group of its own.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE = 5.0  # seconds between asking the processes to end and ending them


def main(command: list[str]) -> int:
    """Run it, and give its exit code: as a shell's, 128 and the number of the signal that ended it."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: end(process))  # a service manager may ask this one
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 (the caller's)

    def watch() -> None:
        os.read(0, 1)  # and not sys.stdin, whose lock this thread would hold at the interpreter's end
        end(process)

    threading.Thread(target=watch, daemon=True).start()
    code = process.wait()
    end(process)  # what it started may still run
    return code if code >= 0 else 128 - code


def end(process: "subprocess.Popen[bytes]") -> None:
    """End every process of a group whose leader this is: ask, wait, then insist."""
    deadline = time.monotonic() + GRACE
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()  # a leader that nobody reaps would count as alive
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
