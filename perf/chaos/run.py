"""Chaos: a steady load of wakes against clusters of real processes, through a script of faults.

The script is cut into stretches (`script.stretches`), each with a cluster of its own; one that has to be secluded runs
in a child process (`child`), where that can be had. Leaves no process, no file and no rule behind, however it ends.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..faults.seclusion import why_not
from ..harness.job import start_job
from ..harness.measure import notes_on_process
from ..harness.progress import Progress, no_progress
from ..harness.scratch import temporary_directory
from .child import ChildAnswer, ChildOrder
from .options import ChaosOptions, check_options
from .overload import VALUE_BYTES
from .report import ChaosReport, PhaseReport, unproven_phase
from .script import Stretch, parse_phases, script, stretches
from .stage import run_steps

__all__ = ["chaos"]

_CHILD_SECONDS = 120.0
"""How long a child may take beside its phases: to start, put agents to sleep and stop, on a busy machine."""


async def chaos(
    options: ChaosOptions, progress: Progress = no_progress, *, parent_directory: Path | None = None
) -> ChaosReport:
    """Go through the script; the temporary directory is made in `parent_directory`, None for the system's.

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
        with temporary_directory(parent_directory) as directory:
            if stretch.secluded:
                phases += await _secluded(options, stretch, directory, progress)
            else:
                own = options
                if stretch.steps[0].phase == "overload":
                    own = msgspec.structs.replace(options, value_bytes=VALUE_BYTES)
                phases += await run_steps(own, stretch.steps, directory, progress)
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


async def _secluded(options: ChaosOptions, stretch: Stretch, directory: Path, progress: Progress) -> list[PhaseReport]:
    why = why_not()
    if why is None:
        answer = await _ask_child(ChildOrder(options, stretch.steps), directory, progress)
        if answer.unproven is None:
            return answer.phases
        why = answer.unproven
    return [unproven_phase(step.phase, why) for step in stretch.steps]


async def _ask_child(order: ChildOrder, directory: Path, progress: Progress) -> ChildAnswer:
    names = " and ".join(step.phase for step in order.steps)
    progress(f"{names}, secluded", 0, 1)
    with start_job(f"{__package__}.child", "the secluded part", order, directory) as job:
        await job.ended(_CHILD_SECONDS + sum(step.seconds for step in order.steps))
    progress(f"{names}, secluded", 1, 1)
    return job.answer(ChildAnswer)
