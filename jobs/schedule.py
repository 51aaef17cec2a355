"""Retrain by a cron line on a Ray cluster, for as long as this runs:

    python -m jobs.schedule --cron "0 3 * * 0" mnist-aligndraw --data data/mnist --out out
    python -m jobs.schedule --cron "0 3 1 * *" --env AWS_PROFILE coco-aligndraw --data s3://B/coco --out s3://B/out --warm-start

What follows the options is that of jobs.retrain, which is submitted through Ray's job server when the line is due (UTC). Never
two at once: what comes due meanwhile waits for the end, and of several times that were missed only the last is made up for.

It remembers the last slot in OUT/retrain/NAME.schedule.json, and whether that slot is done is said by its run. So this program and
the cluster's head may be started again at any time: a job that went down with the head is submitted again under its own
id, and goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cluster import local
from jobs import retrain, submit
from jobs.arguments import parse
from pipeline import storage

LOOK_S = 20.0  # between looks at the clock and at the job
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")  # of Ray's job statuses


class Jobs(Protocol):
    """What is needed of a job server; OSError while it does not answer."""

    def status(self, submission: str) -> str | None:
        """A job's status; None if the server does not know it."""

    def start(self, submission: str, slot: str) -> None:
        """Submit the retraining of a slot; nothing happens if a job of this id is there."""


class Schedule:
    """The slots of one retraining; `look` is called again and again."""

    def __init__(self, arguments: retrain.RetrainArguments, cron: str, jobs: Jobs, now: datetime) -> None:
        self.arguments, self.cron, self.jobs = arguments, cron, jobs
        self.path = storage.join(arguments.out, "retrain", f"{arguments.config.name}.schedule.json")
        if storage.exists(self.path):
            self.state = json.loads(storage.read_text(self.path))
        else:  # what was due before the schedule existed was not missed
            self.state = {"due": retrain.last_due(cron, now).isoformat(), "open": False}
            self._keep()

    def look(self, now: datetime) -> None:
        """Submit what is due, if nothing is running; see what became of what was submitted."""
        if self.state["open"] and not self._has_ended():
            return
        last, due = datetime.fromisoformat(self.state["due"]), retrain.last_due(self.cron, now)
        if due > last:
            self._start(due)
            if retrain.last_due(self.cron, due - timedelta(minutes=1)) > last:
                say("more than one slot was missed: only the last is made up for")
            self.state = {"due": due.isoformat(), "open": True}
            self._keep()

    def _has_ended(self) -> bool:
        """Whether the slot that was submitted last is over. Submits it again where the server has forgotten it unfinished."""
        due = datetime.fromisoformat(self.state["due"])
        submission, run = self._id(due), retrain.workspace_of(self.arguments, due.strftime(retrain.SLOT))
        if (decided := run.finished(retrain.DECIDE)) is not None:
            say(f"{submission}: {decided['decision']}: {decided['why']}")
        elif (status := self.jobs.status(submission)) is None:
            say(f"Ray does not know {submission}, which is not done: it goes on where it was")
            self._start(due)
            return False
        elif status not in ENDED:
            return False
        else:
            say(f"{submission} {status.lower()} without a decision: see ray job logs {submission}")
        self.state["open"] = False
        self._keep()
        return True

    def _id(self, due: datetime) -> str:
        """The same for the same slot, so that Ray refuses a second one."""
        return f"retrain-{self.arguments.config.name}-{due.strftime(retrain.SLOT)}"

    def _start(self, due: datetime) -> None:
        say(f"submitting {self._id(due)}")
        self.jobs.start(self._id(due), due.strftime(retrain.SLOT))

    def _keep(self) -> None:
        storage.publish_text(self.path, json.dumps(self.state))


class RayJobs:
    """Ray's job server. `words`: of jobs.retrain."""

    def __init__(self, words: Sequence[str], env: Sequence[str]) -> None:
        self.words, self.options = list(words), [word for name in env for word in ("--env", name)]

    def status(self, submission: str) -> str | None:
        from ray.job_submission import JobSubmissionClient

        address = submit.reachable(dict(os.environ))
        try:
            return JobSubmissionClient(address).get_job_status(submission).value
        except RuntimeError as error:  # Ray's only error, whatever it is
            if "does not exist" in str(error):
                return None
            raise OSError(f"Ray at {address}: {error}") from error

    def start(self, submission: str, slot: str) -> None:
        if self.status(submission) is None:
            submit.main(["--no-wait", "--id", submission, *self.options, "retrain", *self.words, "--slot", slot])


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if not options.arguments:
        raise ValueError("what is to be retrained? a recipe's name comes after the options, then those of jobs.retrain")
    arguments = parse(retrain.__doc__, options.arguments, retrain.RetrainArguments)
    if arguments.slot or arguments.cron or arguments.rollback:
        raise ValueError("--slot, --rollback and a second --cron are for jobs.retrain by hand")
    now = datetime.now(UTC)
    retrain.last_due(options.cron, now)
    for name, value in local.environment().items():
        os.environ.setdefault(name, value)
    lock = storage.join(arguments.out, "retrain", f"{arguments.config.name}.schedule.lock")
    with storage.locked(lock, _busy):
        jobs = RayJobs(options.arguments, options.env)
        schedule = Schedule(arguments, options.cron, jobs, now)
        say(f'{arguments.config.name} by "{options.cron}" (UTC), last due {schedule.state["due"]}')
        keep_looking(schedule)
    return 0


def keep_looking(schedule: Schedule, sleep: Callable[[float], None] = time.sleep) -> None:
    """Look until the process ends; a cluster that does not answer is waited for, and said once."""
    away = False
    while True:
        try:
            schedule.look(datetime.now(UTC))
            if away:
                say("the cluster is back")
            away = False
        except (OSError, ValueError) as error:
            if not away:
                say(f"{' '.join(str(error).split())}; looking again every {LOOK_S:.0f} s")
            away = True
        sleep(LOOK_S)


def say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}", flush=True)


def _busy(holder: str) -> None:
    raise ValueError(f"{holder} schedules this retraining already: stop it first, or take another --name or --out")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.schedule", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cron", required=True, help="minute hour day month weekday, UTC; 0 and 7 are Sundays")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable on to the jobs")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="RECIPE and more: see python -m jobs.retrain --help"
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("stopped; a job that runs goes on")
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
