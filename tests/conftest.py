"""The options of the test suite, and what it needs of the process that it is started in."""

import gc
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: no child of it could be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--reference",
        metavar="DIR",
        help="folder of conformance vectors (default: $BACKPRUNE_REFERENCE, else ../shared/reference beside the checkout)",
    )


def pytest_collection_finish():
    """What is loaded by now stays: nobody's garbage collection needs to look through it, which took a quarter of a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # else libraries complain at the end of what they think was leaked
