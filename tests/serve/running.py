"""Servers of the tests: an application in this process, and `segue serve` as a process of its own."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx2


def find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def listening(app, port=None):
    """An application on a socket."""
    import uvicorn

    from segue.serve.connections import Connection

    port = port or find_port()
    how = {"http": Connection, "log_level": "error", "access_log": False}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **how))
    thread = threading.Thread(target=server.run)
    thread.start()
    running = Server(f"http://127.0.0.1:{port}", app, server)
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield running
    finally:
        for client in running.clients:
            client.close()
        server.should_exit = True
        thread.join()


class Server:
    """Where it listens, and what is inside."""

    def __init__(self, url, app, uvicorn):
        self.url, self.app, self.uvicorn, self.clients = url, app, uvicorn, []

    @property
    def context(self):
        return self.app.state.context

    def client(self, **options):
        import openai

        client = openai.OpenAI(base_url=f"{self.url}/v1", **({"api_key": "none", "max_retries": 0} | options))
        self.clients.append(client)
        return client

    def http(self, **options):
        return httpx2.Client(base_url=self.url, **({"timeout": 60} | options))

    def wait_idle(self):
        """Until nothing runs and nothing waits."""
        scheduler = self.context.scheduler
        for _ in range(1000):
            if not scheduler.running and not scheduler.waiting:
                return
            time.sleep(0.02)
        raise AssertionError("work goes on that nobody waits for")


@contextmanager
def served(folder, port, *options, python=()):
    """`segue serve` as a process when it is ready, and a client."""
    command = [sys.executable, *python, "-m", "segue.cli.main", "serve", "-m", str(folder), "--port", str(port)]
    command += options
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
                wait_ready(process, http)
                yield process, http
        finally:
            process.kill()


def wait_ready(process, http):
    for _ in range(6000):
        try:
            if http.get("/ready").status_code != 503:
                return
        except httpx2.ConnectError:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
