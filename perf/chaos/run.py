"""Chaos: a steady load of wakes against clusters of real processes, through a script of faults.

The script is cut into stretches (`script.stretches`), each with a cluster of its own; one that has to be secluded runs
in a child process (`child`), where that can be had. Leaves no process, no file and no rule behind, however it ends.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from ..faults.seclusion import why_not
from ..harness.child_process import ChildFailed, check_running, child_process, python_module
from ..harness.measure import notes_on_process
from ..harness.progress import Progress, no_progress
from ..harness.scratch import temporary_folder
from .child import ChildAnswer, ChildOrder
from .options import ChaosOptions, check_options
from .overload import VALUE_BYTES
from .report import ChaosReport, PhaseReport, unproven_phase
from .script import Stretch, parse_phases, script, stretches
from .stage import run_steps

__all__ = ["chaos"]

_CHILD_SECONDS = 120.0
"""How long a child may take beside its phases: to start, put agents to sleep and stop, on a busy machine."""

_LOOK_SECONDS = 0.05


async def chaos(
    options: ChaosOptions, progress: Progress = no_progress, *, parent_folder: Path | None = None
) -> ChaosReport:
    """Go through the script; `parent_folder` is where the temporary folder for data is made, None for the system's.

    Raises:
        ScriptError, WorkloadError: the options cannot be.
        WrongResult: a complete wake gave something else than was saved.
        ChildFailed: a process of the harness failed.
    """
    check_options(options)
    steps = script(parse_phases(",".join(options.phases)), options.seconds)
    phases: list[PhaseReport] = []
    notes = notes_on_process()
    for stretch in stretches(steps):
        with temporary_folder(parent_folder) as folder:
            if stretch.secluded:
                phases += await _secluded(options, stretch, folder, progress)
            else:
                own = options
                if stretch.steps[0].phase == "overload":
                    own = msgspec.structs.replace(options, value_bytes=VALUE_BYTES)
                phases += await run_steps(own, stretch.steps, folder, progress)
    return ChaosReport(
        agents=options.agents,
        value_bytes=options.value_bytes,
        rate=options.rate,
        deadline_ms=options.deadline_ms,
        node=options.node,
        seed=options.seed,
        phases=phases,
        notes=notes,
    )


async def _secluded(options: ChaosOptions, stretch: Stretch, folder: Path, progress: Progress) -> list[PhaseReport]:
    why = why_not()
    if why is None:
        answer = await _ask_child(ChildOrder(options, stretch.steps), folder, progress)
        if answer.unproven is None:
            return answer.phases
        why = answer.unproven
    return [unproven_phase(step.phase, why) for step in stretch.steps]


async def _ask_child(order: ChildOrder, folder: Path, progress: Progress) -> ChildAnswer:
    order_path, answer_path, log = folder / "order.json", folder / "answer.json", folder / "child.log"
    order_path.write_bytes(msgspec.json.encode(order))
    names = " and ".join(step.phase for step in order.steps)
    progress(f"{names}, secluded", 0, 1)
    end_s = asyncio.get_running_loop().time() + _CHILD_SECONDS + sum(step.seconds for step in order.steps)
    with child_process(
        python_module("dawnchorus.perf.chaos.child", str(order_path), str(answer_path)), log=log
    ) as child:
        while child.poll() is None:
            if asyncio.get_running_loop().time() > end_s:
                raise ChildFailed("the secluded part did not end in time")
            await asyncio.sleep(_LOOK_SECONDS)
        if child.returncode:
            check_running(child, "the secluded part", log)
    progress(f"{names}, secluded", 1, 1)
    return msgspec.json.decode(answer_path.read_bytes(), type=ChildAnswer)
