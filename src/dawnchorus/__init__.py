"""Wakes dormant agents: restores the state of ten thousand and more at once from independent state services.

async with dawnchorus.connect("topology.toml") as cluster:
    state = await cluster.wake("agent-42")
    state["profile"]
"""

from .router.agent_write import Saved
from .router.cluster import Cluster, connect
from .router.outcomes import Outcome
from .router.state import AgentState
from .router.sync_cluster import SyncAgentState, SyncCluster, SyncStream, connect_sync
from .wire.errors import (
    AgentNotFound,
    ClusterUnavailable,
    ConfigurationError,
    DataFolderError,
    DawnchorusError,
    DeadlineExceeded,
    FragmentAbsent,
    FragmentUnavailable,
    FragmentUndecodable,
    InvalidRequestError,
    LaunchError,
    NotSupportedError,
    PeerFault,
    PlacementError,
    ProtocolError,
    SaveError,
    SaveIncomplete,
    SaveInterrupted,
    SaveRefused,
    SaveUndecidable,
    StoreDamaged,
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
    "DataFolderError",
    "DawnchorusError",
    "DeadlineExceeded",
    "FragmentAbsent",
    "FragmentUnavailable",
    "FragmentUndecodable",
    "InvalidRequestError",
    "LaunchError",
    "NotSupportedError",
    "Outcome",
    "PeerFault",
    "PlacementError",
    "ProtocolError",
    "SaveError",
    "SaveIncomplete",
    "SaveInterrupted",
    "SaveRefused",
    "SaveUndecidable",
    "Saved",
    "StoreDamaged",
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
