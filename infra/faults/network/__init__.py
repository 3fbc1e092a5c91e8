"""Real networks on one machine: two namespaces of the kernel joined by a wire of ours that delays, loses, reorders, slows down and cuts
what passes. It is for tests and the long form of the fault suite; it needs Linux, root, iproute2 and /dev/net/tun."""

from schemas.errors import Fault


class NetworkUnavailable(Fault, RuntimeError):
    """Networks cannot be made here; the message says what is missing."""
