"""The base of errors that a person can mend."""


class Fault(Exception):
    """Something is wrong that a person can put right. The message is all they need: what is wrong, where, and what to do; the command line
    prints it as one line, without a traceback. Whether waiting helps too is said by a second base: `ConnectionError`."""
