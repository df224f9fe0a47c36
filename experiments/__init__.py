"""Experiment binaries: python -m experiments.NAME."""

import signal
import sys

# Python imports this package before the program, whose own imports take seconds: until `launch`
# handles signals, Ctrl-C ends the process at once and without a traceback.
if sys.argv[:1] == ['-m'] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)
