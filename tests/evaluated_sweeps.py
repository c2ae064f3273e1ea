"""Small sweeps of real training, for the tests of `carft evaluate OUT`."""

from runs_jobs import train_job, write_pictures

from domainbed_carft.jobs.job import identity

STEPS = 3


def train_sweep(folder, algorithms, targets=(0, 1), trials=(0,)):
    """A job of each algorithm, target and trial on noise; the sweep's output folder."""
    pictures = write_pictures(folder / "own")
    output = folder / "OUT"
    for algorithm in algorithms:
        for trial in trials:
            for target in targets:
                name = identity({"algorithm": algorithm, "trial": trial, "target": target})
                train_job(
                    output / name,
                    pictures,
                    algorithm,
                    *("--trial_seed", str(trial), "--checkpoint_freq", "1"),
                    test_envs=(str(target),),
                )
    return output
