"""The two servers on this machine: a Ray head with its job server, and MLflow. Both listen on loopback only.

    python -m cluster.local up        # start what is not running; `make up`
    python -m cluster.local status    # where they are
    python -m cluster.local stop      # stop what this checkout started, nothing else; `make stop`
    eval "$(python -m cluster.local env)"    # for `ray job submit` and other clients in this shell

State is in `.local/` of the checkout: addresses (kept from start to start while their ports are free), Ray's token, logs,
MLflow's database and artifacts. There are no pid files to go stale: a server is known by a variable in its environment
that names this checkout, which its children inherit. So two checkouts live side by side, a recycled process id is never
mistaken for a server, and children of a server that was killed are found too. Ray asks every client for the token, which
only this user can read: other users of the machine cannot run code through it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".local"
MARK = "CANVAS_SERVER"  # variable of a server's environment: "<name> <checkout's state folder>"
NAMES = ("ray", "mlflow")
PORTS = {"ray": 8265, "ray_gcs": 6379, "ray_client": 10001, "ray_agent": 52365, "mlflow": 5000}  # where they are free
START_S, STOP_S = 180, 40  # Ray lets its jobs end for up to 30 s when it is stopped
OBJECT_STORE = 1 << 30  # bytes; images travel through files, not through Ray


def up(state: Path = STATE) -> dict[str, str]:
    """Start the servers that are not running and wait until they answer; their addresses."""
    state.mkdir(parents=True, exist_ok=True)
    with _locked(state / "lock"):
        running = {name for name in NAMES if processes(name, state)}
        _choose_ports(state, running)
        began = time.monotonic()
        for name in NAMES:
            if name in running and not _answers_within(name, state, 30):
                print(f"{name} runs but does not answer: starting it again", flush=True)
                _end(name, state)
                running.remove(name)
            if name not in running:
                _start(name, state)
        for name in NAMES:
            if not _answers_within(name, state, START_S):
                tail = (state / f"{name}.log").read_text(errors="replace")[-1500:]
                raise OSError(f"{name} did not start; the end of {state / f'{name}.log'}:\n{tail}")
            how = "already running" if name in running else f"started in {time.monotonic() - began:.0f} s"
            print(f"{name:7}{address(name, state)}  {how}", flush=True)
        print(f"{'':7}Ray's page asks for the token in {state / 'token'}", flush=True)
    return {name: address(name, state) for name in NAMES}


def stop(state: Path = STATE) -> None:
    """Stop the servers of this checkout, and all that runs on its Ray."""
    with _locked(state / "lock") if state.is_dir() else contextlib.nullcontext():
        for name in reversed(NAMES):
            count = len(processes(name, state))
            _end(name, state)
            print(f"{name:7}{f'stopped ({count} processes)' if count else 'was not running'}", flush=True)


def status(state: Path = STATE) -> bool:
    """Print where the servers are; whether both answer."""
    answers = {name: bool(processes(name, state)) and healthy(name, state) for name in NAMES}
    for name, answer in answers.items():
        print(f"{name:7}{address(name, state) if answer else 'not running'}")
    return all(answers.values())


def environment(state: Path = STATE) -> dict[str, str]:
    """What a client on this machine needs; empty when the servers were never started here."""
    if not (state / "servers.json").exists():
        return {}
    return {
        "RAY_API_SERVER_ADDRESS": address("ray", state),
        "RAY_ADDRESS": f"127.0.0.1:{_ports(state)['ray_gcs']}",
        **_token(state),
        "MLFLOW_TRACKING_URI": address("mlflow", state),
    }


def address(name: str, state: Path = STATE) -> str:
    return f"http://127.0.0.1:{_ports(state)[name]}"


def healthy(name: str, state: Path = STATE) -> bool:
    """Whether a server answers as what it is."""
    path = {"ray": "/api/version", "mlflow": "/health"}[name]
    with contextlib.suppress(OSError):
        request = urllib.request.Request(address(name, state) + path)
        if name == "ray":
            request.add_header("Authorization", f"Bearer {(state / 'token').read_text()}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status == 200
    return False


def processes(name: str, state: Path = STATE) -> list:
    """The processes of a server, parents first: those whose environment carries its mark."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == f"{name} {state}" and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _start(name: str, state: Path) -> None:
    command, extra = {"ray": _ray_command, "mlflow": _mlflow_command}[name](state)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    own = {
        MARK: f"{name} {state}",
        # a job's entry point says `python`: it is this one
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **extra,
    }
    with open(state / f"{name}.log", "wb") as log:
        subprocess.Popen(
            command,
            env=kept | own,
            cwd=state,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C in the terminal is not for the servers
        )


def _ray_command(state: Path) -> tuple[list[str], dict[str, str]]:
    ports = _ports(state)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={ports['ray_gcs']}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={ports['ray']}"]
    command += [
        f"--ray-client-server-port={ports['ray_client']}",
        f"--dashboard-agent-listen-port={ports['ray_agent']}",
    ]
    command += [f"--object-store-memory={OBJECT_STORE}", f"--temp-dir={_fresh_temporary_folder(state)}"]
    return command, {
        **_token(state),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Linux's Ray takes 127.0.0.1 for the machine's outer address
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # a stopped job may end its checkpoint; Ray's own patience is 3 s
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _mlflow_command(state: Path) -> tuple[list[str], dict[str, str]]:
    folder, port = state / "mlflow", _ports(state)["mlflow"]
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"]
    return command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _end(name: str, state: Path) -> None:
    """Ask a server's first processes to end, which end theirs; then end what is left."""
    import psutil

    found = processes(name, state)
    pids = {process.pid for process in found}
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in pids:
                process.terminate()
    _, left = psutil.wait_procs(found, timeout=STOP_S)
    for process in {*left, *processes(name, state)}:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _answers_within(name: str, state: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and processes(name, state):
        if healthy(name, state):
            return True
        time.sleep(0.3)
    return False


def _choose_ports(state: Path, running: set[str]) -> None:
    """Keep the ports of servers that run; for the others take their last ports, or others where those are taken."""
    ports = PORTS | (_ports(state) if (state / "servers.json").exists() else {})
    for name, port in ports.items():
        if name.partition("_")[0] not in running and not _is_free(port):
            ports[name] = _free_port(set(ports.values()))
            print(f"port {port} ({name}) is taken by another program: using {ports[name]}", flush=True)
    part = state / "servers.json.part"
    part.write_text(json.dumps(ports))
    part.replace(state / "servers.json")


def _ports(state: Path) -> dict[str, int]:
    return json.loads((state / "servers.json").read_text())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def _free_port(but: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := probe.getsockname()[1]) not in but:
                return port


def _token(state: Path) -> dict[str, str]:
    """Ray's token authentication with a token of this checkout's own, made when it is first asked for."""
    path = state / "token"
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def _fresh_temporary_folder(state: Path) -> Path:
    """An empty folder for Ray's session, in one that `.local/ray` points to.

    It is in the system's temporary folder because Ray makes sockets in it, whose paths have at most 107 bytes. Ray opens its
    folder to everybody, and writes jobs' environments into its logs: the folder around it is for this user alone.
    """
    link = state / "ray"
    if link.is_symlink():
        shutil.rmtree(link.resolve(), ignore_errors=True)
        link.unlink()
    folder = Path(tempfile.mkdtemp(prefix="canvas-", dir="/tmp"))
    link.symlink_to(folder)
    return folder / "r"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time starts or stops servers; the kernel frees the lock when its holder dies."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("up", "status", "stop", "env"))
    command = parser.parse_args(argv).command
    try:
        if command == "up":
            up()
        elif command == "stop":
            stop()
        elif command == "status":
            return 0 if status() else 1
        elif not environment():
            raise OSError("no servers were started from this folder: make up")
        else:
            print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment().items()))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
