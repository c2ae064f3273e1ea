"""Who waits to run a sweep's jobs: live launchers, and SLURM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import launch_file, slurm_cluster
from domainbed_carft.launchers.launch_file import Launch
from domainbed_carft.launchers.slurm_cluster import JobState


@dataclass(frozen=True)
class Queue:
    """The launchers and queued jobs of an output folder.

    ``positions``: job folder -> where the job waits; ``reasons``: job folder -> SLURM's reason for
    the wait, of jobs that wait there; ``live_launches``: those whose process lives;
    ``ended_files``: files of launches that have ended. ``slurm_states``: SLURM's state of each of
    its jobs that has not ended; ``note``: why SLURM could not be asked, else "".
    """

    positions: Mapping[Path, str]
    live_launches: Sequence[Launch]
    ended_files: Sequence[Path]
    slurm_states: Mapping[str, JobState]
    note: str
    reasons: Mapping[Path, str]


def queue_of(output: Path) -> Queue:
    """The queue of an output folder, from all launch files of it and its variants.

    Asks SLURM once; if it does not answer, the reason is the queue's ``note``.
    """
    known_launches = launch_file.read(output)
    slurm_ids = [name for launch in known_launches for name in launch.jobs.values() if name]
    slurm_states: Mapping[str, JobState] = {}
    note = ""
    try:
        slurm_states = slurm_cluster.states(slurm_ids)
    except CarftError as error:
        note = str(error)

    positions: dict[Path, str] = {}
    reasons: dict[Path, str] = {}
    live_launches: list[Launch] = []
    ended_files: list[Path] = []
    for launch in known_launches:
        is_live = launch.launcher != "slurm" and launch.is_alive()
        queued: dict[str, str] = {}
        sweep_folder = launch.path.parent.parent
        if is_live:
            live_launches.append(launch)
            position = f"{launch.launcher} on {launch.host}, process {launch.pid}"
            queued = dict.fromkeys(launch.jobs, position)
        else:
            for name, state in _states_in_slurm(launch, slurm_states).items():
                queued[name] = f"SLURM job {launch.jobs[name]}, {state}"
                reasons[sweep_folder / name] = state.reason

        positions.update((sweep_folder / name, position) for name, position in queued.items())
        is_unknown = note and launch.launcher == "slurm"
        if not queued and not is_unknown:
            ended_files.append(launch.path)
    return Queue(positions, live_launches, ended_files, slurm_states, note, reasons)


def _states_in_slurm(launch: Launch, slurm_states: Mapping[str, JobState]) -> dict[str, JobState]:
    """SLURM's states of the jobs of a launch that have not ended, by the names of their folders."""
    return {
        name: slurm_states[slurm_id]
        for name, slurm_id in launch.jobs.items()
        if slurm_id is not None and slurm_id in slurm_states
    }
