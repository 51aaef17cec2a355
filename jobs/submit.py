"""Run a job on a Ray cluster from this folder, follow its log, and end with its exit code:

    python -m jobs.submit experiment digits-demo --out out
    python -m jobs.submit --no-wait train mnist-aligndraw --data data/mnist --out out --train.steps 200

It runs `ray job submit` (the command is printed, with *** for what may be secret) and adds what that leaves open: the
environment a job needs is passed explicitly, relative paths are meant from here when the cluster is this machine, a cluster
that cannot be reached is one line, the log is followed to the job's end also when its connection breaks, and the exit code is
the job's own instead of 1 for any failure.

The cluster is RAY_API_SERVER_ADDRESS, else the one that `make up` started here. Uploaded is this folder less what
.rayignore and .gitignore name: no data, no results, no secrets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from cluster import local
from pipeline.tracking import git_commit, shown

AWAY_S = 60  # a job server that is restarted is back by then, and a head that is starting is ready
STARTING, AGAIN_S = "No available agent", 2.0  # what Ray says while its head starts; when to ask again
JOBS = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "arguments", "artist", "compare_page", "schedule", "submit", "workspace")
)


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    surroundings = {**local.environment(), **os.environ}
    address = reachable(surroundings)
    submission = options.id or f"{options.job}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    variables = environment(surroundings, address, options.env)
    command = ["ray", "job", "submit", "--no-wait", "--submission-id", submission, "--working-dir", str(local.ROOT)]
    entry = ["--", "python", "-m", f"jobs.{options.job}", *options.arguments]
    visible = {name: "***" if name in options.env else shown(value) for name, value in variables.items()}
    print(shlex.join([*command, "--runtime-env-json", json.dumps({"env_vars": visible}), *entry]), flush=True)
    command[0] = str(Path(sys.executable).with_name("ray"))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:  # whoever is on this machine can read a command line
        file.write(json.dumps({"env_vars": variables}))
        file.flush()
        command += ["--runtime-env", file.name, *entry]
        accepted = _submit(command, surroundings)
    if accepted.returncode:
        # of a traceback the error; Ray puts a dot on a line of its own after it
        said = [line for line in accepted.stdout.splitlines() if line.strip(" .")]
        raise ValueError(f"Ray at {address} did not accept the job: {said[-1] if said else accepted.returncode}")
    later = f"Follow it: ray job logs -f {submission}   Stop it: ray job stop {submission}"
    if "RAY_API_SERVER_ADDRESS" not in os.environ:  # we know where `make up` started Ray, `ray` does not
        later += '   Before either: eval "$(python -m cluster.local env)"'
    if options.no_wait:
        print(later)
        return 0
    os.environ.update({name: value for name, value in surroundings.items() if name.startswith("RAY_")})
    try:
        return asyncio.run(_follow(address, submission))
    except KeyboardInterrupt:
        print(f"\nThe job goes on. {later}")
        return 130


def _submit(command: list[str], surroundings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `ray job submit`; again while Ray answers but cannot start jobs yet, as in its first seconds."""
    patience = time.monotonic() + AWAY_S
    while True:
        done = subprocess.run(command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0 or STARTING not in done.stdout or time.monotonic() > patience:
            return done
        time.sleep(AGAIN_S)


def environment(surroundings: dict[str, str], address: str, names: list[str]) -> dict[str, str]:
    """The variables of a job: a job sees nothing of the environment it is submitted from."""
    if missing := [name for name in names if name not in surroundings]:
        raise ValueError(f"--env {missing[0]}: there is no such variable here; export it first")
    variables = {
        "CANVAS_COMMIT": git_commit(),
        # workers report when a checkpoint is whole, and Ray looks for reports this often: its own 2 s would delay steps
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    if _is_here(address):
        variables["CANVAS_FOLDER"] = os.getcwd()  # what relative paths are relative to
        if "RAY_ADDRESS" in surroundings:  # which Ray a worker is of, where there are several on the machine
            variables["RAY_ADDRESS"] = surroundings["RAY_ADDRESS"]
    if uri := surroundings.get("MLFLOW_TRACKING_URI"):
        variables["MLFLOW_TRACKING_URI"] = uri
    return variables | {name: surroundings[name] for name in names}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-wait", action="store_true", help="return when the job is accepted")
    parser.add_argument("--id", help="submission id; a second job with the same id is refused")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable on to the job")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the job: see python -m jobs.JOB --help")
    return parser


def reachable(surroundings: dict[str, str]) -> str:
    """The address of a job server that answers and takes our token; ValueError says what is wrong instead."""
    address = surroundings.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise ValueError("no Ray to submit to: start one here with `make up`, or set RAY_API_SERVER_ADDRESS")
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}/api/version")
        if token := _token(surroundings):
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=10):
            return address
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ValueError(
                f"Ray at {address} asks for its token (HTTP {error.code}): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; "
                'for the Ray of `make up`: eval "$(python -m cluster.local env)"'
            ) from None
        raise ValueError(f"{address} is no Ray job server (HTTP {error.code}): check RAY_API_SERVER_ADDRESS") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"no Ray at {address} ({reason}): start it (`make up` here), or set RAY_API_SERVER_ADDRESS"
        ) from None


def _token(surroundings: dict[str, str]) -> str | None:
    if token := surroundings.get("RAY_AUTH_TOKEN"):
        return token
    path = surroundings.get("RAY_AUTH_TOKEN_PATH")
    return Path(path).read_text().strip() if path else None


def _is_here(address: str) -> bool:
    return urllib.parse.urlparse(address).hostname in ("127.0.0.1", "localhost", "::1")


async def _follow(address: str, submission: str) -> int:
    """Print a job's log as it grows; its exit code once it has ended. A server that is away for a minute is waited for."""
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    client, printed, seen = JobSubmissionClient(address), 0, time.monotonic()
    while True:
        read = 0  # the log begins anew on every connection
        try:
            async for text in client.tail_job_logs(submission):
                print(text[max(0, printed - read) :], end="", flush=True)
                read += len(text)
                printed, seen = max(printed, read), time.monotonic()
        except Exception as error:  # however the connection broke: what matters is whether the job has ended
            print(f"[the log broke off: {error}]", file=sys.stderr)
        try:
            if (job := client.get_job_info(submission)).status.is_terminal():
                break
            seen = time.monotonic()
        except OSError as error:
            if time.monotonic() - seen > AWAY_S:
                raise ValueError(
                    f"Ray at {address} is away since {AWAY_S} s: start it again and submit again, the job goes on where it was"
                ) from error
        except RuntimeError as error:  # Ray's only error, whatever it is
            if "does not exist" not in str(error):
                raise
            raise ValueError(
                f"Ray at {address} was started anew and has forgotten {submission}: submit it again, it goes on where it was"
            ) from None
        await asyncio.sleep(2)
    print(client.get_job_logs(submission)[printed:], end="", flush=True)
    if job.status != "SUCCEEDED" and job.driver_exit_code is None:  # it never ran, or was stopped
        print(f"error: job {submission} {job.status.lower()}: {job.message}", file=sys.stderr)
    return 0 if job.status == "SUCCEEDED" else job.driver_exit_code or 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
