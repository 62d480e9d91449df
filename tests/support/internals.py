"""What a client holds inside: the one place where tests look past the public face."""

from dawnchorus import Cluster

__all__ = ["leftovers"]


def leftovers(cluster: Cluster) -> dict[str, int]:
    """Return what a client still holds of requests, by table; empty once nobody waits for anything."""
    router = cluster._router  # pyright: ignore[reportPrivateUsage]
    coalescer = cluster._coalescer  # pyright: ignore[reportPrivateUsage]
    flows = router._flows  # pyright: ignore[reportPrivateUsage]
    tables = {
        "exchanges": sum(map(len, flows.values())),
        "expected bytes": sum(flow._expected_bytes for flow in flows.values()),  # pyright: ignore[reportPrivateUsage]
        "replies": len(router._replies),  # pyright: ignore[reportPrivateUsage]
        "pending": len(coalescer._pending),  # pyright: ignore[reportPrivateUsage]
        "under way": sum(map(len, coalescer._under_way.values())),  # pyright: ignore[reportPrivateUsage]
        "floors": len(cluster._floors),  # pyright: ignore[reportPrivateUsage]
        "fetches": cluster._floors._fetches,  # pyright: ignore[reportPrivateUsage]
    }
    return {name: count for name, count in tables.items() if count}
