"""Run a comparison: check, estimate, execute, report."""

from classification.compare import classifiers, detectors
from classification.compare.kinds import Kind
from classification.compare.networks import describe, read_networks
from classification.compare.options import Request
from classification.compare.settings import CLASSIFICATION, DETECTION

KINDS: dict[str, Kind] = {CLASSIFICATION: classifiers.KIND, DETECTION: detectors.KIND}


def run(request: Request) -> None:
    """Run or resume a comparison, and print its answer.

    Raises:
        UserError: the data, the networks or the options are unusable, or runs failed.
    """
    kind = KINDS[request.settings.kind]
    networks = read_networks(request.settings.weights)
    print("\n".join(describe(networks)))
    kind.tasks(request.settings, networks)
