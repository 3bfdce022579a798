"""``python -m teamvla``: the same as the ``teamvla`` command."""

import os
import signal

# Until the command line has its own handlers, Ctrl-C ends the process without a word.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Libraries start interpreters of their own, with `-c`: those must not import what lies in the
# current folder, which may be a stranger's.
os.environ.setdefault("PYTHONSAFEPATH", "1")

from teamvla.cli.app import main

if __name__ == "__main__":
    main()
