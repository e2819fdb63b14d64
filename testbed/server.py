"""A headless ComfyUI on a free loopback port, for the demo, the server tests and `dev.py serve`."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

from PIL import Image

from . import device

HOST, BASE = (
    Path(os.environ.get(name, default))
    for name, default in (("UNLEARN_HOST", ".host/ComfyUI"), ("UNLEARN_BASE", ".host/base"))
)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(port, *more):
    """The command line that starts the host with this pack and no other."""
    flags = [
        *device.flags(),
        "--port",
        str(port),
        "--listen",
        "127.0.0.1",
        "--base-directory",
        str(BASE),
        "--database-url",
        "sqlite:///:memory:",
    ]
    flags += [
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes",
        "ComfyUI-Unlearn",
        "--disable-api-nodes",
    ]
    return [sys.executable, "-s", str(HOST / "main.py"), *flags, *more]


class Failed(RuntimeError):
    """The server refused or failed a graph.

    The message is the server's own; `kind` is the type of a node's error.
    """

    def __init__(self, message, kind=""):
        super().__init__(message)
        self.kind = kind


class Server:
    """A running ComfyUI: `with Server() as server: server.run(graph)`.

    Its output goes to the file `log`. The files in `leaves` are removed when it ends.
    """

    def __init__(self, *more, log=None, leaves=()):
        self.leaves = leaves
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = uuid.uuid4().hex
        self.log = Path(log or BASE / "server.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                command(self.port, *more), stdout=out, stderr=subprocess.STDOUT, cwd=HOST, env=env
            )

    def wait(self, seconds=180):
        """Waits until the server answers; raises Failed with the end of its log if it does not."""
        until = time.time() + seconds
        while time.time() < until:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return self
            time.sleep(0.2)
        raise Failed(f"ComfyUI did not start; the end of its log:\n{self.tail()}")

    def tail(self, lines=25):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Failed(error.read().decode(errors="replace")) from None

    def queue(self, graph):
        """Queues an API-format graph; returns its prompt id."""
        return self.post("/prompt", {"prompt": graph, "client_id": self.client})["prompt_id"]

    def finish(self, prompt_id, seconds=600, tick=None):
        """Waits for a queued graph and returns its outputs by node id.

        Raises Failed with the node's own message, or after `seconds`.
        """
        until = time.time() + seconds
        while time.time() < until:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                status = entry["status"]
                if status.get("completed"):
                    return entry["outputs"]
                messages = [
                    m[1]
                    for m in status.get("messages", [])
                    if m[0] in ("execution_error", "execution_interrupted")
                ]
                said = messages[0] if messages else {}
                raise Failed(
                    said.get("exception_message", "interrupted") if messages else str(status),
                    said.get("exception_type", ""),
                )
            if self.process.poll() is not None:
                raise Failed(f"ComfyUI stopped; the end of its log:\n{self.tail()}")
            if tick is not None:
                tick()
            time.sleep(0.1)
        raise Failed(f"the graph did not finish within {seconds} s")

    def cancel(self, prompt_id, seconds=120, when=lambda: True):
        """Interrupts a queued graph as soon as `when()`; waits for its end as `finish` does.

        It asks until the graph has ended. ComfyUI drops a request that comes before the graph has
        begun: it clears the flag when it begins.
        """

        def ask():
            if when():
                self.post("/interrupt", {"prompt_id": prompt_id})

        return self.finish(prompt_id, seconds, ask)

    @contextlib.contextmanager
    def messages(self):
        """A list that fills with the JSON messages that the server sends over its websocket.

        At the end it reads on until nothing has come for half a second: the list is then whole.
        """
        import asyncio
        import threading

        import aiohttp

        seen, ready, done = [], threading.Event(), threading.Event()
        over = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)

        async def listen():
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={self.client}") as socket,
            ):
                ready.set()
                while True:
                    last = done.is_set()
                    try:
                        message = await socket.receive(timeout=0.5)
                    except asyncio.TimeoutError:
                        if last:
                            return
                        continue
                    if message.type in over:
                        return
                    if message.type == aiohttp.WSMsgType.TEXT:
                        seen.append(json.loads(message.data))

        thread = threading.Thread(target=asyncio.run, args=(listen(),))
        thread.start()
        try:
            if not ready.wait(60):
                raise Failed("the server's websocket did not open within 60 s")
            yield seen
        finally:
            done.set()
            thread.join()

    def run(self, graph, seconds=600, tick=None):
        return self.finish(self.queue(graph), seconds, tick)

    def image(self, entry):
        """The picture of one `images` entry of an output."""
        query = urllib.parse.urlencode({k: entry[k] for k in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
            return Image.open(io.BytesIO(answer.read())).convert("RGB")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        try:
            return self.wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_):
        self.stop()
        for path in self.leaves:
            path.unlink(missing_ok=True)
