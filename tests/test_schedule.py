"""The schedule, with a clock and a job server of the test's own: what is submitted when, and what survives what."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs import retrain, schedule
from jobs.arguments import parse
from jobs.schedule import Schedule, keep_looking
from pipeline import storage

ROOT = Path(__file__).resolve().parent.parent
SUNDAY = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
WEEK, MINUTE = timedelta(days=7), timedelta(minutes=1)
CRON = "0 3 * * 0"


class FakeJobs:
    """A job server that remembers what it was asked to start, until its head is lost."""

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.started: list[str] = []
        self.away = False

    def status(self, submission: str) -> str | None:
        if self.away:
            raise OSError("no Ray there")
        return self.jobs.get(submission)

    def start(self, submission: str, slot: str) -> None:
        if self.status(submission) is None:
            assert not any(status == "RUNNING" for status in self.jobs.values()), "two at once"
            self.jobs[submission] = "RUNNING"
            self.started.append(slot)

    def end(self, status: str = "SUCCEEDED") -> None:
        self.jobs = {name: status if was == "RUNNING" else was for name, was in self.jobs.items()}


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


def arguments(out: Path) -> retrain.RetrainArguments:
    return parse(retrain.__doc__, ["tiny-aligndraw", "--out", str(out)], retrain.RetrainArguments)


def new(out: Path, jobs: FakeJobs, now: datetime) -> Schedule:
    return Schedule(arguments(out), CRON, jobs, now)


def decide(out: Path, slot: str) -> None:
    """What a retraining does at its end."""
    retrain.workspace_of(arguments(out), slot).finish("decide", {"decision": "kept", "why": "it is no better"})


@pytest.mark.parametrize("cron", [CRON, "0 3 * * 7", "0 3 * * sun"])
def test_sunday_is_sunday(cron: str) -> None:
    """Against the calendar, four times a day, for a year."""
    now = datetime(2026, 1, 5, tzinfo=UTC)
    for _ in range(365 * 4):
        now += timedelta(hours=6)
        last = now.replace(hour=3, minute=0)
        while last > now or last.strftime("%A") != "Sunday":
            last -= timedelta(days=1)
        assert retrain.last_due(cron, now) == last
    assert retrain.last_due(cron, SUNDAY) == SUNDAY
    assert retrain.last_due(cron, SUNDAY - timedelta(microseconds=1)) == SUNDAY - WEEK


@pytest.mark.parametrize("cron", ["", "0 3 * *", "0 3 * * 0 0", "0 25 * * *", "0 3 * * fun", "nonsense a b c d"])
def test_a_line_that_is_none_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="--cron"):
        retrain.last_due(cron, SUNDAY)


def test_a_slot_has_one_name_however_it_is_reckoned(tmp_path: Path) -> None:
    given = ["tiny-aligndraw", "--out", str(tmp_path)]
    by_cron = parse(retrain.__doc__, [*given, "--cron", CRON], retrain.RetrainArguments)
    for later in (timedelta(), MINUTE, timedelta(hours=5), WEEK - MINUTE):
        assert retrain.slot_of(by_cron, SUNDAY + later) == "20261122-0300"
    assert retrain.slot_of(parse(retrain.__doc__, given, retrain.RetrainArguments), SUNDAY) == "20261122-0300"
    bad = parse(retrain.__doc__, [*given, "--slot", "../up"], retrain.RetrainArguments)
    with pytest.raises(ValueError, match="--slot '../up'"):
        retrain.slot_of(bad, SUNDAY)


def test_what_is_due_is_submitted_once_and_what_was_due_before_is_not(tmp_path: Path, jobs: FakeJobs) -> None:
    plan = new(tmp_path, jobs, SUNDAY - MINUTE)
    plan.look(SUNDAY - MINUTE)
    assert jobs.started == []
    for second in range(0, 120, 20):
        plan.look(SUNDAY + timedelta(seconds=second))
    assert jobs.started == ["20261122-0300"] and list(jobs.jobs) == ["retrain-tiny-aligndraw-20261122-0300"]
    decide(tmp_path, "20261122-0300")
    jobs.end()
    plan.look(SUNDAY + WEEK)
    assert jobs.started == ["20261122-0300", "20261129-0300"]


def test_never_two_at_once_and_one_for_all_that_were_missed(tmp_path: Path, jobs: FakeJobs, capsys) -> None:
    plan = new(tmp_path, jobs, SUNDAY - MINUTE)
    plan.look(SUNDAY)
    for week in (1, 2, 3):  # it takes three weeks
        plan.look(SUNDAY + week * WEEK)
    assert jobs.started == ["20261122-0300"]
    jobs.end("FAILED")
    plan.look(SUNDAY + 3 * WEEK + MINUTE)
    plan.look(SUNDAY + 3 * WEEK + 2 * MINUTE)
    assert jobs.started == ["20261122-0300", "20261213-0300"]
    said = capsys.readouterr().out
    assert "failed without a decision" in said and "only the last is made up for" in said


def test_it_survives_its_own_end_at_every_point(
    tmp_path: Path, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    new(tmp_path, jobs, SUNDAY - MINUTE).look(SUNDAY - MINUTE)
    plan = new(tmp_path, jobs, SUNDAY)

    def killed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):  # after it submitted, before it wrote that down
        plan.look(SUNDAY)
    for minute in range(3):  # a new process each time
        new(tmp_path, jobs, SUNDAY + minute * MINUTE).look(SUNDAY + minute * MINUTE)
    assert jobs.started == ["20261122-0300"]
    # down while the job ended and two slots went by
    jobs.end()
    decide(tmp_path, "20261122-0300")
    new(tmp_path, jobs, SUNDAY + 2 * WEEK + MINUTE).look(SUNDAY + 2 * WEEK + MINUTE)
    assert jobs.started == ["20261122-0300", "20261206-0300"]


def test_it_survives_the_heads_end(tmp_path: Path, jobs: FakeJobs, capsys) -> None:
    plan = new(tmp_path, jobs, SUNDAY - MINUTE)
    plan.look(SUNDAY)
    jobs.jobs = {}  # another head, which knows nothing
    plan.look(SUNDAY + MINUTE)
    assert jobs.started == ["20261122-0300"] * 2
    plan.look(SUNDAY + 2 * MINUTE)
    decide(tmp_path, "20261122-0300")
    jobs.jobs = {}
    plan.look(SUNDAY + 3 * MINUTE)  # done, so it is not done again
    assert jobs.started == ["20261122-0300"] * 2
    assert "kept: it is no better" in capsys.readouterr().out


def test_a_cluster_that_is_away_is_waited_for_and_said_once(tmp_path: Path, jobs: FakeJobs, capsys) -> None:
    plan, looks = new(tmp_path, jobs, datetime.now(UTC) - WEEK), []
    jobs.away = True

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        jobs.away = len(looks) < 4
        if len(looks) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_looking(plan, sleep)
    said = capsys.readouterr().out
    assert said.count("no Ray there") == 1 and said.count("the cluster is back") == 1
    assert len(jobs.started) == 1


def test_a_second_scheduler_of_the_same_retraining_is_refused(tmp_path: Path) -> None:
    words = ["--cron", CRON, "tiny-aligndraw", "--out", str(tmp_path)]
    with storage.locked(tmp_path / "retrain" / "tiny-aligndraw.schedule.lock", print):
        with pytest.raises(ValueError, match="schedules this retraining already"):
            schedule.main(words)


def test_mistakes_are_one_line_before_anything_is_scheduled(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words, said in {
        ("--cron", CRON): "a recipe's name comes after the options",
        ("--cron", "every day", "tiny-aligndraw"): "five fields are expected",
        ("--cron", CRON, "tiny-aligndrow"): "did you mean tiny-aligndraw",
        ("--cron", CRON, "tiny-aligndraw", "--train.steps", "many"): "many",
        ("--cron", CRON, "tiny-aligndraw", "--slot", "mine"): "by hand",
    }.items():
        command = [sys.executable, "-m", "jobs.schedule", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
