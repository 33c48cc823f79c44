"""The jobs of a run that somebody may want to see or end: those of its ledger, and those that others started."""

from __future__ import annotations

from wiseft_dist.claims import open_claims
from wiseft_dist.launch.ledger import Entry, read_ledger
from wiseft_dist.run import Run


def known_jobs(run: Run) -> dict[str, Entry]:
    """The newest job of each name, in the order in which they were submitted or begun.

    A stage that somebody started with `srun` or `sbatch` stands in no ledger, but its claim names Slurm's job.
    """
    jobs = read_ledger(run)
    for name, claim in open_claims(run).items():
        entry = jobs.get(name)
        if claim.job_id and (entry is None or (entry.job_id != claim.job_id and entry.submitted < claim.since)):
            jobs[name] = Entry(name, claim.job_id, str(run.jobs / name.partition("/")[0]), "slurm", claim.since)
    return {entry.name: entry for entry in sorted(jobs.values(), key=lambda entry: entry.submitted)}
