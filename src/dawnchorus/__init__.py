"""Wakes dormant agents: restores the state of ten thousand and more at once from independent state services.

async with dawnchorus.connect("topology.toml") as cluster:
    state = await cluster.wake("agent-42")
    state["profile"]
"""

from .router.client.cluster import Cluster
from .router.client.connect import connect
from .router.client.sync_cluster import SyncAgentState, SyncCluster, SyncStream, connect_sync
from .router.saves.agent_write import Saved
from .router.wakes.agent_state import AgentState
from .router.wakes.outcomes import Outcome
from .wire.errors import (
    AgentNotFound,
    ClusterUnavailable,
    ConfigurationError,
    DataDirectoryError,
    DawnchorusError,
    DeadlineExceeded,
    FragmentAbsent,
    FragmentUnavailable,
    FragmentUndecodable,
    InvalidRequestError,
    LaunchError,
    PeerFault,
    PlacementError,
    ProtocolError,
    SaveError,
    SaveIncomplete,
    SaveIndeterminate,
    SaveInterrupted,
    SaveRejected,
    StoreCorrupt,
    StoreError,
    StoreFull,
    TopologyError,
    UnknownKindError,
    VersionConflict,
    WakeIncomplete,
    WrongLoopError,
)
from .wire.process_tuning import tune_process

__all__ = [
    "AgentNotFound",
    "AgentState",
    "Cluster",
    "ClusterUnavailable",
    "ConfigurationError",
    "DataDirectoryError",
    "DawnchorusError",
    "DeadlineExceeded",
    "FragmentAbsent",
    "FragmentUnavailable",
    "FragmentUndecodable",
    "InvalidRequestError",
    "LaunchError",
    "Outcome",
    "PeerFault",
    "PlacementError",
    "ProtocolError",
    "SaveError",
    "SaveIncomplete",
    "SaveIndeterminate",
    "SaveInterrupted",
    "SaveRejected",
    "Saved",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "SyncAgentState",
    "SyncCluster",
    "SyncStream",
    "TopologyError",
    "UnknownKindError",
    "VersionConflict",
    "WakeIncomplete",
    "WrongLoopError",
    "connect",
    "connect_sync",
    "tune_process",
]
