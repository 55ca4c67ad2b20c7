"""The options of the test suite."""


def pytest_addoption(parser):
    parser.addoption(
        "--reference",
        metavar="DIR",
        help="folder of conformance vectors (default: $BACKPRUNE_REFERENCE, else ../shared/reference beside the checkout)",
    )
